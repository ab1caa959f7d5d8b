"""The grids of a cached step are those of what a cached step really computes, with the stored and corrected feature."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from tiny_models import ddim_pipe, draw, noise, recorded_inputs, tiny_unet

import iec
from iec.efficient import CacheQuantConfig, calibrate
from iec.efficient.cachequant.recording import recording_cached
from iec.efficient.quantization.calibration import record_trajectories
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.histogram import Histogram
from iec.efficient.quantization.ranges import search_histogram
from iec.efficient.quantization.statistics import ActivationStatistics
from iec.efficient.stages import Stages
from iec.efficient.trajectories import Trajectories
from iec.method.noise import image_generator

from ..caching.architectures import decoder_resnets, skip_channels

STEPS, BRANCH, SAMPLES = 6, 1, 5
CONFIG = CacheQuantConfig(3, BRANCH)
CACHED = (1, 2, 4, 5)
ATTENTION = {"add_attention": True, "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
LAST = f"up_blocks.1.resnets.{1 - BRANCH}"  # the re-entry: the last but BRANCH ResNet of the decoder


def pipe_of():
    return ddim_pipe(tiny_unet(**ATTENTION))


@pytest.fixture(scope="module")
def plan():
    return calibrate(pipe_of(), CONFIG, STEPS, samples=SAMPLES, batch_size=SAMPLES)


def by_hand(plan):
    """What every layer is given at every step, {layer: [T] of tensors}: the plain UNet on the states of its own full
    run, where at a cached step a hook replaces the main input of the re-entry ResNet by the one stored and corrected.
    """
    pipe = pipe_of()
    unet, skip = pipe.unet, skip_channels(pipe.unet)[BRANCH]
    with recorded_inputs(unet) as states:
        pipe(
            batch_size=SAMPLES,
            generator=[image_generator(2000, index) for index in range(SAMPLES)],
            num_inference_steps=STEPS,
        )
    names = [target.name for target in coverage(unet, QuantizationConfig()).layers]
    seen = {name: [] for name in names}
    for name in names:
        unet.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: seen[name].append(args[0]))
    stored = []

    def reenter(module, args):
        main, entry, step = args[0][:, :-skip], args[0][:, -skip:], len(seen["conv_in"]) - 1
        if step not in CACHED:
            stored.append(main)
            return None
        a, b = (values[step].view(1, -1, 1, 1) for values in plan.feature)
        return (torch.cat([a * stored[-1] + b, entry], 1), *args[1:])

    decoder_resnets(unet)[-1 - BRANCH].register_forward_pre_hook(reenter)
    for x, t in zip(states, pipe.scheduler.timesteps, strict=True):
        with torch.no_grad():
            unet(x, t)
    return seen


def same_ranges(grid, inputs, part):
    """Whether the grid of every step is that of its inputs."""
    for step, x in enumerate(inputs):
        histogram = Histogram()
        histogram.add(x if part is None else x.split(part[0], 1)[part[1]])
        expected = search_histogram(histogram, 8)
        torch.testing.assert_close(grid.delta[step], expected.delta, rtol=1e-4, atol=0)
        assert (grid.zero_point[step] - expected.zero_point).abs() <= 1


def check(grids, plan):
    unet, inputs = tiny_unet(**ATTENTION), by_hand(plan)
    for target in coverage(unet, QuantizationConfig()).layers:
        for index, key in enumerate(target.keys):
            part = (list(target.widths), index) if len(target.keys) > 1 else None
            same_ranges(grids[key], inputs[target.name], part)


def test_calibration_records_every_layer_where_a_cached_run_computes_it(plan):
    check(plan.quantization.activations, plan)
    pipe = pipe_of()
    stages = Stages(Trajectories(pipe, STEPS, SAMPLES, SAMPLES), 1)
    full_run = record_trajectories(pipe.unet, QuantizationConfig(), stages).grids()
    with pytest.raises(AssertionError, match="not close"):
        check(full_run, plan)


@pytest.fixture(scope="module")
def planted(plan):
    """Corrections with which a cached step is far from the full one."""
    scale, shift = plan.feature[0].clone(), plan.feature[1].clone()
    scale[list(CACHED)], shift[list(CACHED)] = 8.0, 5 * noise(len(CACHED), scale.shape[1])
    return replace(plan, feature=(scale, shift))


def recorded(plan):
    pipe = pipe_of()
    statistics = ActivationStatistics(coverage(pipe.unet, QuantizationConfig()))
    with recording_cached(pipe.unet, statistics, plan):
        Trajectories(pipe, STEPS, SAMPLES, SAMPLES).run()
    return pipe, statistics


def test_where_the_two_differ_by_far_the_cached_one_counts(plan, planted):
    pipe, statistics = recorded(planted)
    grids, calm = statistics.grids(), plan.quantization.activations
    check(grids, planted)
    assert type(pipe.unet) is UNet2DModel
    for key, grid in grids.items():
        ratio = grid.delta / calm[key].delta
        assert ratio[[0, 3]] == pytest.approx(torch.ones(2), rel=1e-4)  # a full step computes what it always did
        if key == f"{LAST}.conv_shortcut:0":  # the main branch at the re-entry
            assert (ratio[list(CACHED)] > 4).all()
        if key.startswith(("conv_in", "mid_block", "up_blocks.0", "down_blocks")):
            assert ratio == pytest.approx(torch.ones(STEPS), rel=1e-4)
    # Attention operands behind the re-entry are counted once per evaluation as well, not twice.
    totals = {key: [histogram.total for histogram in row] for key, row in statistics.histograms.items()}
    assert all(len(set(row)) == 1 for row in totals.values())
    assert any("attentions" in key and key.endswith("probabilities") for key in totals)


def test_the_trajectories_are_those_of_full_precision_whatever_the_correction(planted):
    totals = []
    for iterations, corrected in ((0, []), (1, list(range(STEPS)))):
        pipe = pipe_of()
        statistics = ActivationStatistics(coverage(pipe.unet, QuantizationConfig()))
        iec.enable(pipe, iec.IECConfig(num_iterations=iterations))
        expected = draw(pipe, STEPS)
        with recording_cached(pipe.unet, statistics, planted):
            torch.testing.assert_close(draw(pipe, STEPS), expected, rtol=0, atol=1e-5)  # attention is not fused there
        assert iec.summary(pipe).corrected == corrected
        assert type(pipe.unet) is UNet2DModel
        totals.append({key: [histogram.total for histogram in row] for key, row in statistics.histograms.items()})
    assert totals[0] == totals[1]  # correction passes are not counted
