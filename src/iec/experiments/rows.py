"""Sampling one setting and judging it: KD-cifar (the verdict), FD-cifar, PSNR to full precision, measured cost."""

import copy
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from iec.efficient import DeepCacheConfig, apply, model_bytes, remove
from iec.evaluation.bootstrap import (
    Estimate,
    bootstrap_frechet,
    bootstrap_kernel_difference,
    bootstrap_kernel_distance,
    bootstrap_psnr,
)
from iec.evaluation.cost import EvaluationCost, evaluation_cost
from iec.evaluation.features import extract_features
from iec.evaluation.generate import Batch, generate
from iec.evaluation.kernel import KernelTerms, kernel_distance, kernel_terms, mean_kernel_within
from iec.evaluation.memory import PeakMemory
from iec.evaluation.psnr import mean_squared_error
from iec.experiments.plans import Plans
from iec.experiments.samplers.sampled_with import network_changed
from iec.experiments.settings import Setting
from iec.models.features import FeatureNetwork, Reference
from iec.runtime import network_of


@dataclass(frozen=True)
class Sampled:
    """The images of one setting, uint8 [n, 3, H, W], with what they cost.

    full, cached, cost: evaluations per image, and F + c C. seconds: wall time of them all. processor_seconds: the same
    in processor time, which other processes on the machine hardly change. model_bytes: of the network's tensors.
    peak_memory_mb: above what was held before, all workers together; None where the system does not tell.
    """

    setting: Setting
    images: torch.Tensor
    full: int
    cached: int
    cost: float
    seconds: float
    processor_seconds: float
    model_bytes: int
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class Figures:
    """How good a set of images is: KD-cifar, FD-cifar, and PSNR to full precision (None for full precision itself)."""

    kernel: Estimate
    frechet: Estimate
    psnr: Estimate | None


@dataclass(frozen=True)
class PairableFigures(Figures):
    """Figures with the terms that pair them with another row's, which take 8 n^2 bytes."""

    terms: KernelTerms

    def alone(self) -> Figures:
        """The figures without what pairs them."""
        return Figures(self.kernel, self.frechet, self.psnr)


@dataclass(frozen=True)
class Judged:
    """One setting with its figures."""

    sampled: Sampled
    figures: PairableFigures


@dataclass(frozen=True)
class Verdict:
    """A setting against one rival: the paired difference of KD-cifar, negative where the setting is better."""

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
    plans: Plans,
    on_batch: Callable[[int], None] = lambda images: None,
    calibration: bool = False,
) -> Sampled:
    """Sample `num_images` images with one setting, with whose solver `pipe` comes; `on_batch(images)` is told how many
    a batch made. calibration: as of `generate`.
    """
    network = network_of(pipe)
    with plans.applied(pipe, setting):
        unit, size = evaluation_cost(network, setting.num_steps), model_bytes(pipe)
        with network_changed(network, setting.sampler, pipe.scheduler), PeakMemory(network) as memory:
            began, worked = time.perf_counter(), time.process_time()
            batches = generate_in_parallel(pipe, num_images, setting, seed, batch_size, on_batch, calibration)
            seconds, processor_seconds = time.perf_counter() - began, time.process_time() - worked
    full, cached = batches[0].summary.full_evaluations, batches[0].summary.cached_evaluations
    images = torch.cat([batch.images for batch in batches])
    cost = unit.total(full, cached)
    return Sampled(setting, images, full, cached, cost, seconds, processor_seconds, size, memory.megabytes)


def cached_evaluation_cost(pipe: DiffusionPipeline, cache: DeepCacheConfig) -> EvaluationCost:
    """The cost of a full evaluation, and of one that the cache served."""
    apply(pipe, cache)
    try:
        return evaluation_cost(network_of(pipe))
    finally:
        remove(pipe)


def generate_in_parallel(
    pipe: DiffusionPipeline,
    num_images: int,
    setting: Setting,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None],
    calibration: bool = False,
) -> list[Batch]:
    """All batches of a setting, on a CPU by one worker of one thread per core: the same bytes whatever their number.

    For a network this small, that is faster than several threads inside one evaluation.
    """
    numbers = range(math.ceil(num_images / batch_size))
    cores = torch.get_num_threads()
    workers = min(cores, len(numbers)) if pipe.device.type == "cpu" else 1
    shares = [frozenset(numbers) - frozenset(numbers[worker::workers]) for worker in range(workers)]
    stopped = threading.Event()

    def work(skip: frozenset[int]) -> list[Batch]:
        torch.set_num_threads(1)
        # A scheduler serves one run at a time; the network is shared.
        own = type(pipe)(pipe.unet, copy.deepcopy(pipe.scheduler))
        own.set_progress_bar_config(disable=True)
        done: list[Batch] = []
        arguments = (num_images, setting.num_steps, seed, batch_size, setting.correction, skip)
        for batch in generate(own, *arguments, calibration=calibration):
            on_batch(len(batch.images))
            done.append(batch)
            if stopped.is_set():
                break
        return done

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, skip) for skip in shares]
        try:
            batches = [batch for future in futures for batch in future.result()]
        finally:
            stopped.set()  # after an interruption, the others end with the batch they are at
            torch.set_num_threads(cores)
    return sorted(batches, key=lambda batch: batch.start)


class Judge:
    """Judges sampled settings against the reference features and against the full-precision images."""

    def __init__(self, network: FeatureNetwork, reference: Reference, full_precision: torch.Tensor) -> None:
        self.network, self.reference, self.full_precision = network, reference, full_precision
        self.within_reference = mean_kernel_within(reference.features)

    def kernel_distance(self, images: torch.Tensor) -> float:
        """KD-cifar of images uint8 [n, 3, 32, 32]."""
        features = extract_features(self.network, images)
        return kernel_distance(kernel_terms(features, self.reference.features, self.within_reference)).item()

    def judge(self, images: torch.Tensor) -> PairableFigures:
        """The figures of images uint8 [n, 3, 32, 32], each with its 95 % bootstrap interval."""
        features = extract_features(self.network, images)
        terms = kernel_terms(features, self.reference.features, self.within_reference)
        errors = mean_squared_error(images, self.full_precision)
        return PairableFigures(
            bootstrap_kernel_distance(terms),
            bootstrap_frechet(features, self.reference),
            bootstrap_psnr(errors) if bool(errors.any()) else None,
            terms,
        )


def compare(ours: PairableFigures, rival: PairableFigures, setting: Setting) -> Verdict:
    """The verdict on a row against a rival with that setting, paired by image."""
    return Verdict(setting, bootstrap_kernel_difference(ours.terms, rival.terms))
