"""Reconstruction on the embedded model: what 4 bits lose, and how much of that comes back."""

from dataclasses import replace

import pytest
import torch

from iec.efficient import QuantizationConfig, ReconstructionConfig, apply, calibrate
from iec.efficient.quantization.reconstruction.reconstruct import reconstruct
from iec.efficient.quantization.reconstruction.samples import collect_samples
from iec.efficient.trajectories import Trajectories
from iec.method.noise import image_generator
from iec.models.loading import load_pipeline

STEPS, IMAGES, TRAJECTORIES = 20, 16, 64
#: Decibels of PSNR to full precision.
MARGIN = 2.0


@pytest.mark.slow
def test_four_bits_with_reconstruction_are_nearer_to_full_precision_than_without():
    pipe, config = load_pipeline(), ReconstructionConfig()
    exact = [images(pipe, seed) for seed in range(3)]
    nearest = calibrate(pipe, QuantizationConfig(weights=4), STEPS, samples=TRAJECTORIES, batch_size=32)
    samples = collect_samples(pipe.unet, Trajectories(pipe, STEPS, TRAJECTORIES, 32), STEPS, config.samples)
    asking = replace(nearest, config=replace(nearest.config, reconstruction=config))
    found = reconstruct(pipe.unet, asking, samples)
    decibels = []
    for plan in (nearest, found):
        apply(pipe, plan)
        decibels.append([psnr(images(pipe, seed), own) for seed, own in enumerate(exact)])
    for before, after in zip(*decibels, strict=True):
        assert after > before + MARGIN


def images(pipe, seed):
    generators = [image_generator(seed, index) for index in range(IMAGES)]
    return torch.as_tensor(pipe(generators, num_inference_steps=STEPS, output_type="np").images)


def psnr(a, b):
    return (10 * torch.log10(1 / (a - b).square().mean())).item()
