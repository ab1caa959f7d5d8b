"""Calibration: what is recorded is what the exact search sees, step by step, on any pipeline."""

import math

import pytest
import torch
from diffusers import DDIMPipeline, PNDMScheduler
from tiny_models import ddim_pipe, draw, tiny_net, tiny_unet

import iec
from iec.efficient.quantization.calibration import record_trajectories
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import quantize_network, search_weights
from iec.efficient.quantization.ranges import SHRINKS, choose
from iec.efficient.quantization.statistics import ActivationStatistics, recording
from iec.efficient.stages import Stages
from iec.efficient.trajectories import Trajectories
from iec.method.clock import Clock
from iec.method.noise import image_generator
from iec.models.unconditional import UnconditionalPipeline

from .networks import unet

W8 = QuantizationConfig()
STEPS, SAMPLES = 4, 6


def pipe_of(network=None):
    return ddim_pipe(tiny_unet() if network is None else network)


def record(pipe, config=W8, steps=STEPS, on_progress=lambda done, total: None, **settings):
    trajectories = Trajectories(pipe, steps, **{"samples": SAMPLES, "batch_size": 4, **settings})
    return record_trajectories(pipe.unet, config, Stages(trajectories, 1, on_progress))


def inputs_of_layer(pipe, layer, steps=STEPS, samples=SAMPLES, seed=0):
    """What `layer` is given at every step of the calibration's trajectories, with a plain hook."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    generators = [image_generator(2000 + seed, index) for index in range(samples)]
    pipe(batch_size=samples, generator=generators, num_inference_steps=steps)
    handle.remove()
    assert len(seen) == steps
    return seen


@pytest.mark.parametrize("name", ["conv_in", "mid_block.resnets.0.conv1", "time_embedding.linear_1", "conv_out"])
def test_each_step_has_the_grid_of_the_exact_search_within_one_candidate(name):
    pipe = pipe_of()
    seen = inputs_of_layer(pipe, pipe.unet.get_submodule(name))
    grid = record(pipe).grids()[f"{name}:0"]
    assert grid.delta.shape == (STEPS,)
    for step, x in enumerate(seen):
        best = int(choose(x.reshape(1, -1), 8))
        # Batches of another size are computed in another order.
        widths = (max(0, x.max()) - min(0, x.min())) * torch.tensor(SHRINKS[max(0, best - 1) : best + 2])
        assert (grid.delta[step] * 255 / widths - 1).abs().min() < 1e-4
    assert len(set(grid.delta.tolist())) > 1 or name == "time_embedding.linear_1"


def test_the_parts_of_a_concatenation_have_grids_of_their_own():
    pipe = pipe_of()
    (target,) = [layer for layer in coverage(pipe.unet, W8).layers if layer.name == "up_blocks.0.resnets.0.conv1"]
    seen = inputs_of_layer(pipe, pipe.unet.get_submodule(target.name))
    statistics = record(pipe)
    for part, key in enumerate(target.keys):
        for step, x in enumerate(seen):
            values = x.split(target.widths, 1)[part]
            histogram = statistics.histograms[key][step]
            assert histogram.total == values.numel()
            assert histogram.high == pytest.approx(max(0, values.max().item()), rel=1e-4)
            assert histogram.low == pytest.approx(min(0, values.min().item()), rel=1e-4)


def test_the_batches_do_not_matter():
    grids = [record(pipe_of(), batch_size=size).grids() for size in (1, 4, 6, 99)]
    for key, grid in grids[0].items():
        for other in grids[1:]:
            torch.testing.assert_close(other[key].delta, grid.delta, rtol=0.03, atol=0)


def test_more_trajectories_take_no_more_memory():
    def counts(samples):
        statistics = record(pipe_of(), samples=samples, batch_size=2)
        return sum(h.counts.nbytes for row in statistics.histograms.values() for h in row), statistics

    (few, a), (many, b) = counts(2), counts(8)
    assert few == many == len(a.histograms) * STEPS * 2048 * 8
    assert b.histograms["conv_in:0"][0].total == 4 * a.histograms["conv_in:0"][0].total


def test_steps_share_histograms_in_groups():
    single, grouped = record(pipe_of()), record(pipe_of(), QuantizationConfig(steps_per_group=3))
    for key, row in grouped.histograms.items():
        parts = single.histograms[key]
        assert len(row) == 2
        assert [histogram.total for histogram in row] == [sum(p.total for p in parts[:3]), parts[3].total]
        assert row[0].high == max(part.high for part in parts[:3])
    assert grouped.grids()["conv_in:0"].delta.shape == (2,)


def test_the_seed_is_of_calibration_and_decides_everything():
    base, same, other = record(pipe_of()), record(pipe_of()), record(pipe_of(), seed=1)
    assert torch.equal(base.grids()["conv_in:0"].delta, same.grids()["conv_in:0"].delta)
    assert base.histograms["conv_in:0"][0].high != other.histograms["conv_in:0"][0].high
    noise = torch.stack([torch.randn(3, 8, 8, generator=image_generator(2000, i)) for i in range(SAMPLES)])
    assert base.histograms["conv_in:0"][0].high == noise.max().item()


def test_a_correction_pass_is_not_recorded():
    base, pipe = record(pipe_of()), pipe_of()
    iec.enable(pipe)
    corrected = record(pipe)
    assert corrected.histograms["conv_in:0"][0].total == base.histograms["conv_in:0"][0].total
    assert len(iec.summary(pipe).corrected) == STEPS


def test_the_pipeline_is_left_as_it_was():
    pipe = pipe_of(unet())
    expected = draw(pipe)
    record(pipe)
    assert type(pipe) is DDIMPipeline
    assert torch.equal(draw(pipe), expected)
    calls = []

    def fail(done, total):
        calls.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(pipe, on_progress=fail)
    assert calls == [(4, SAMPLES)]
    assert type(pipe) is DDIMPipeline
    assert torch.equal(draw(pipe), expected)


def test_progress_is_told_after_every_batch():
    told = []
    record(pipe_of(), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]


def test_a_scheduler_with_more_calls_than_steps_is_recorded_by_its_calls():
    pipe = UnconditionalPipeline(tiny_unet(), PNDMScheduler(skip_prk_steps=True, beta_end=2e-3))
    pipe.set_progress_bar_config(disable=True)
    statistics = record(pipe)
    assert statistics.num_steps == STEPS + 1
    assert statistics.grids()["conv_in:0"].delta.shape == (STEPS + 1,)


def test_prompts_are_taken_in_turn():
    pipe, seen = pipe_of(), []
    base = type(pipe)

    class Prompted(base):
        def __call__(self, prompt, guidance=1.0, batch_size=1, **kwargs):
            seen.append((prompt, guidance, batch_size))
            return super().__call__(batch_size=batch_size, **kwargs)

    pipe.__class__ = Prompted
    record(pipe, inputs={"prompt": ["a", "b", "c", "d", "e"], "guidance": 7.5})
    assert seen == [(["a", "b", "c", "d"], 7.5, 4), (["e", "a"], 7.5, 2)]
    seen.clear()
    record(pipe, inputs={"prompt": "cat"}, samples=2)
    assert seen == [(["cat", "cat"], 1.0, 2)]
    for inputs, message in (
        ({}, "needs 'prompt', which was not given"),
        ({"prompt": []}, "no calibration data"),
        ({"prompt": "a", "size": 3}, "takes no 'size'"),
    ):
        with pytest.raises(ValueError, match=message):
            record(pipe, inputs=inputs)


# Refusals


def test_a_value_that_is_not_finite_is_named():
    network = tiny_unet()
    network.mid_block.resnets[0].conv1.bias[0] = math.inf
    with pytest.raises(ValueError, match=r"At step 0, the input of '.*' became infinite or NaN"):
        record(pipe_of(network))


def test_runs_of_different_lengths_are_not_mixed():
    network = tiny_unet()
    statistics = ActivationStatistics(coverage(network, W8))
    with recording(network, statistics.covered, statistics.add), torch.no_grad():
        with Clock(2):
            network(torch.zeros(1, 3, 8, 8), 5)
        with Clock(3), pytest.raises(ValueError, match="A run of 3 steps cannot be recorded with runs of 2"):
            network(torch.zeros(1, 3, 8, 8), 5)


def test_a_step_that_was_not_run_is_named():
    network = tiny_unet()
    statistics = ActivationStatistics(coverage(network, W8))
    with pytest.raises(ValueError, match="no calibration data"):
        statistics.grids()
    with recording(network, statistics.covered, statistics.add), Clock(2), torch.no_grad():
        network(torch.zeros(1, 3, 8, 8), 5)
    with pytest.raises(ValueError, match="was not run at step 1: calibrate the full model"):
        statistics.grids()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"samples": 0}, ValueError),
        ({"samples": 2.0}, TypeError),
        ({"batch_size": 0}, ValueError),
        ({"steps": 0}, ValueError),
        ({"seed": 2000}, ValueError),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_anything_is_sampled(settings, error):
    pipe, calls = pipe_of(), []
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(error, match=r"\.$"):
        record(pipe, **settings)
    assert not calls
    assert type(pipe) is DDIMPipeline


def test_a_quantized_network_and_an_unknown_one_are_refused():
    pipe = pipe_of()
    covered = coverage(pipe.unet, W8)
    quantize_network(pipe.unet, covered, search_weights(pipe.unet, covered), record(pipe).grids(), STEPS)
    with pytest.raises(ValueError, match="quantized already"):
        record(pipe)
    with pytest.raises(TypeError, match="but the denoiser is a TinyNet"):
        record(pipe_of(tiny_net()))
