"""Reconstruction inside a calibration that is interrupted: units that are done stay done, and the plan is the same."""

import pytest

from efficient.test_resuming import pipe_of, saved
from iec.efficient import CacheQuantConfig, QuantizationConfig, ReconstructionConfig, calibrate

STEPS, SAMPLES, UNITS = 4, 2, 14
TRAINED = ReconstructionConfig("block", iterations=2, samples=4, batch_size=2)
CASES = {  # with the stages before reconstruction, of which the last, its samples, is never written down
    "quantized": (QuantizationConfig(weights=4, reconstruction=TRAINED), 2),
    "cached": (CacheQuantConfig(2, weights=4, reconstruction=TRAINED), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_units_that_are_done_stay_done(tmp_path, name):
    config, stages = CASES[name]
    sampled = SAMPLES * stages
    total, checkpoint = sampled + UNITS, tmp_path / "checkpoint"

    def run(on_progress, checkpoint=None):
        return calibrate(pipe_of(), config, STEPS, SAMPLES, 1, checkpoint=checkpoint, on_progress=on_progress)

    def stop(done, _):
        if done == total - 3:
            raise KeyboardInterrupt

    told = []
    whole = saved(run(lambda *progress: told.append(progress)), tmp_path / "whole")
    assert told == [(done, total) for done in range(1, total + 1)]
    with pytest.raises(KeyboardInterrupt):
        run(stop, checkpoint)
    told.clear()
    plan = run(lambda *progress: told.append(progress), checkpoint)
    assert saved(plan, tmp_path / "plan") == whole
    assert not checkpoint.exists()
    # The stages that were written are taken up, the samples are collected again, and three units are left.
    written = [SAMPLES * stage for stage in range(1, stages)]
    collected = [*range(written[-1] + 1, sampled + 1)]
    assert [done for done, _ in told] == [*written, *collected, *range(total - 2, total + 1)]
