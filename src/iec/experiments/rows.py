"""Sampling one setting and judging it: KD-cifar (the verdict), FD-cifar, PSNR to full precision, measured cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from iec.efficient import apply, remove
from iec.evaluation.bootstrap import (
    Estimate,
    bootstrap_frechet,
    bootstrap_kernel_difference,
    bootstrap_kernel_distance,
    bootstrap_psnr,
)
from iec.evaluation.cost import EvaluationCost, evaluation_cost
from iec.evaluation.features import extract_features
from iec.evaluation.generate import generate
from iec.evaluation.kernel import KernelTerms, kernel_terms, mean_kernel_within
from iec.evaluation.psnr import mean_squared_error
from iec.experiments.settings import Setting
from iec.models.features import FeatureNetwork, Reference
from iec.runtime import network_of


@dataclass(frozen=True)
class Sampled:
    """The images of one setting, uint8 [n, 3, H, W], with their evaluations per image and the wall time of them all."""

    setting: Setting
    images: torch.Tensor
    full: int
    cached: int
    cost: float
    seconds: float


@dataclass(frozen=True)
class Judged:
    """One setting with its figures: KD-cifar, FD-cifar, and PSNR to full precision (None for full precision itself)."""

    sampled: Sampled
    kernel: Estimate
    frechet: Estimate
    psnr: Estimate | None
    terms: KernelTerms


@dataclass(frozen=True)
class Verdict:
    """A corrected setting against one rival: the paired difference of KD-cifar, negative where correction is better."""

    rival: Setting
    difference: Estimate

    @property
    def outcome(self) -> str:
        """`wins`, `loses`, or `not separable` where the interval of the difference includes zero."""
        if not self.difference.separable:
            return "not separable"
        return "wins" if self.difference.value < 0 else "loses"


def sample_setting(
    pipe: DiffusionPipeline,
    setting: Setting,
    num_images: int,
    seed: int,
    batch_size: int,
    unit: EvaluationCost,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Sampled:
    """Sample `num_images` images with one setting; `on_batch(images)` is told how many a batch made."""
    if setting.cache is not None:
        apply(pipe, setting.cache)
    began = time.perf_counter()
    try:
        batches = []
        for batch in generate(pipe, num_images, setting.num_steps, seed, batch_size, setting.correction):
            batches.append(batch)
            on_batch(len(batch.images))
    finally:
        remove(pipe)
    seconds = time.perf_counter() - began
    full, cached = batches[0].summary.full_evaluations, batches[0].summary.cached_evaluations
    images = torch.cat([batch.images for batch in batches])
    return Sampled(setting, images, full, cached, unit.total(full, cached), seconds)


def cached_evaluation_cost(pipe: DiffusionPipeline, setting: Setting) -> EvaluationCost:
    """The cost of a full and of a cached evaluation under the setting's cache."""
    if setting.cache is None:
        return evaluation_cost(network_of(pipe))
    apply(pipe, setting.cache)
    try:
        return evaluation_cost(network_of(pipe))
    finally:
        remove(pipe)


class Judge:
    """Judges sampled settings against the reference features and against the full-precision images."""

    def __init__(self, network: FeatureNetwork, reference: Reference, full_precision: torch.Tensor) -> None:
        self.network, self.reference, self.full_precision = network, reference, full_precision
        self.within_reference = mean_kernel_within(reference.features)

    def judge(self, sampled: Sampled) -> Judged:
        """The figures of one setting, each with its 95 % bootstrap interval."""
        features = extract_features(self.network, sampled.images)
        terms = kernel_terms(features, self.reference.features, self.within_reference)
        errors = mean_squared_error(sampled.images, self.full_precision)
        return Judged(
            sampled,
            bootstrap_kernel_distance(terms),
            bootstrap_frechet(features, self.reference),
            bootstrap_psnr(errors) if bool(errors.any()) else None,
            terms,
        )


def compare(corrected: Judged, rival: Judged) -> Verdict:
    """The verdict on a corrected setting against one rival, paired by image."""
    return Verdict(rival.sampled.setting, bootstrap_kernel_difference(corrected.terms, rival.terms))
