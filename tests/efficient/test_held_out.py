"""What every technique promises holds on noise that calibration never saw, for three seeds: on a tiny network at T=10,
and on the embedded model behind the marker `slow`."""

import math
from dataclasses import dataclass

import pytest
import torch
from tiny_models import tiny_unet

from iec.efficient import (
    CacheQuantConfig,
    DeepCacheConfig,
    QuantizationConfig,
    ReconstructionConfig,
    apply,
    calibrate,
    remove,
)
from iec.efficient.caching import uniform_schedule
from iec.efficient.quantization.coverage import concatenation_splits
from iec.method.noise import image_generator
from iec.models.loading import load_pipeline
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime.schedulers import SpacedDDIMScheduler

SEEDS, IMAGES = range(3), 8


@dataclass
class Model:
    """A pipeline, the steps of its runs, the interval whose schedule is searched, and what is promised for it.

    eight_bits, corrected: decibels of PSNR to full precision of W8A8, without and with bias correction. four_bits: how
    many more reconstruction gives W4A8. dps, dec: the share that may be left of the uniform schedule's objective, and
    of the stored feature's squared error.
    """

    pipe: UnconditionalPipeline
    steps: int
    interval: int
    trajectories: int
    trained: ReconstructionConfig
    eight_bits: float
    corrected: float
    four_bits: float
    dps: float
    dec: float

    def images(self, seed):
        generators = [image_generator(seed, index) for index in range(IMAGES)]
        output = self.pipe(generators, num_inference_steps=self.steps, output_type="np")
        return torch.as_tensor(output.images)

    def decibels(self, config):
        """The PSNR to full precision for every seed."""
        exact = [self.images(seed) for seed in SEEDS]
        apply(self.pipe, self.plan(config))
        found = [self.images(seed) for seed in SEEDS]
        remove(self.pipe)
        return [-10 * math.log10((a - b).square().mean()) for a, b in zip(exact, found, strict=True)]

    def plan(self, config):
        return calibrate(self.pipe, config, self.steps, self.trajectories, batch_size=8)

    def features(self, seed):
        """What enters the re-entry ResNet from the main branch at every step, seen by a plain hook: [T, n, C, H, W]."""
        unet = self.pipe.unet
        resnet = [resnet for block in unet.up_blocks for resnet in block.resnets][-1 - unet.config.layers_per_block - 1]
        seen = []
        hook = resnet.register_forward_pre_hook(
            lambda module, args: seen.append(args[0][:, : concatenation_splits(unet)[module.conv1]])
        )
        self.images(seed)
        hook.remove()
        return torch.stack(seen)


def tiny():
    # Two levels, wide enough that one rounded weight does not decide everything.
    unet = tiny_unet(3, block_out_channels=(16, 32))
    pipe = UnconditionalPipeline(unet, SpacedDDIMScheduler())
    trained = ReconstructionConfig(iterations=60, samples=40, batch_size=20)
    return Model(pipe, 10, 4, 8, trained, 24, 25, 0.5, 0.8, 0.7)


def embedded():
    return Model(load_pipeline(), 60, 15, 32, ReconstructionConfig(), 25, 35, 2, 0.97, 0.8)


@pytest.fixture(scope="module", params=[tiny, pytest.param(embedded, marks=pytest.mark.slow)])
def model(request):
    made = request.param()
    made.pipe.set_progress_bar_config(disable=True)
    return made


def test_eight_bits_stay_near_full_precision(model):
    plain, corrected = (model.decibels(QuantizationConfig(bias_correction=own)) for own in (False, True))
    assert min(plain) > model.eight_bits
    assert min(corrected) > model.corrected


def test_four_bits_are_nearer_with_reconstruction_than_without(model):
    plain = model.decibels(QuantizationConfig(weights=4))
    reconstructed = model.decibels(QuantizationConfig(weights=4, reconstruction=model.trained))
    for before, after in zip(plain, reconstructed, strict=True):
        assert after > before + model.four_bits


def test_dps_beats_the_uniform_schedule_in_its_own_objective(model):
    found = model.plan(DeepCacheConfig(model.interval, schedule="dps")).cache.full_steps(model.steps)
    for seed in SEEDS:
        features = model.features(seed)

        def cost(full_steps, features=features):
            starts = [max(step for step in full_steps if step <= i) for i in range(model.steps)]
            return (features - features[starts]).abs().sum().item()

        assert cost(found) < model.dps * cost(uniform_schedule(model.steps, model.interval))


def test_dec_lowers_the_error_of_the_stored_feature(model):
    plan = model.plan(CacheQuantConfig(5, weights=None))
    scale, shift = (values.view(model.steps, 1, -1, 1, 1) for values in plan.feature)
    stored = [5 * (step // 5) for step in range(model.steps)]
    for seed in SEEDS:
        features = model.features(seed)
        before = (features - features[stored]).square().sum()
        after = (features - scale * features[stored] - shift).square().sum()
        assert after < model.dec * before
