"""Sampling one setting and judging it: the kernel distance (the verdict), the Frechet distance, PSNR, measured cost."""

import copy
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

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
from iec.evaluation.generate import Batch, generate
from iec.evaluation.kernel import KernelTerms, kernel_distance, kernel_terms, mean_kernel_within
from iec.evaluation.memory import PeakMemory
from iec.evaluation.metrics.cifar import CifarExtractor
from iec.evaluation.metrics.extractor import FeatureExtractor, Features
from iec.evaluation.metrics.feature_set import FeatureSet
from iec.evaluation.metrics.inception_score import inception_score
from iec.evaluation.network_call import network_call
from iec.evaluation.psnr import mean_squared_error
from iec.experiments.plans import Plans
from iec.experiments.samplers.sampled_with import network_changed
from iec.experiments.settings import Setting
from iec.models.features import load_reference
from iec.models.unconditional import UnconditionalPipeline
from iec.pipelines.enabling import Correction
from iec.runtime import network_of

#: Of a pipeline that takes none.
NO_INPUTS: Mapping[str, Any] = MappingProxyType({})
#: Images whose features are computed together.
_JUDGED_AT_ONCE = 250


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
    """How good a set of images is: both distances, and PSNR to full precision (None for full precision itself)."""

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
    """A setting against one rival: the paired difference of the kernel distance, negative where it is better."""

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
    inputs: Mapping[str, Any] = NO_INPUTS,
) -> Sampled:
    """Sample `num_images` images with one setting, with whose solver `pipe` comes; `on_batch(images)` is told how many
    a batch made. calibration, inputs: as of `generate`.
    """
    network, call = network_of(pipe), network_call(pipe, setting.num_steps, inputs)
    correction = plans.correction(pipe, setting)
    with plans.applied(pipe, setting):
        unit, size = evaluation_cost(network, call, setting.num_steps), model_bytes(pipe)
        with network_changed(network, setting.sampler, pipe.scheduler), PeakMemory(network) as memory:
            began, worked = time.perf_counter(), time.process_time()
            batches = generate_in_parallel(
                pipe, num_images, setting, correction, seed, batch_size, on_batch, calibration, inputs
            )
            seconds, processor_seconds = time.perf_counter() - began, time.process_time() - worked
    full, cached = batches[0].summary.full_evaluations, batches[0].summary.cached_evaluations
    images = torch.cat([batch.images for batch in batches])
    cost = unit.total(full, cached)
    return Sampled(setting, images, full, cached, cost, seconds, processor_seconds, size, memory.megabytes)


def cached_evaluation_cost(
    pipe: DiffusionPipeline, cache: DeepCacheConfig, num_steps: int, inputs: Mapping[str, Any] = NO_INPUTS
) -> EvaluationCost:
    """The cost of a full evaluation, and of one that the cache served; num_steps, inputs: as of `network_call`."""
    call = network_call(pipe, num_steps, inputs)
    apply(pipe, cache)
    try:
        return evaluation_cost(network_of(pipe), call)
    finally:
        remove(pipe)


def generate_in_parallel(
    pipe: DiffusionPipeline,
    num_images: int,
    setting: Setting,
    correction: Correction | None,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None],
    calibration: bool = False,
    inputs: Mapping[str, Any] = NO_INPUTS,
) -> list[Batch]:
    """All batches of a setting; of unconditional images on a CPU by one worker of one thread per core.

    For networks as small as those, that is faster than several threads inside one evaluation. The bytes are the same
    whatever the number of workers.
    """
    arguments = (num_images, setting.num_steps, seed, batch_size, correction)
    if not isinstance(pipe, UnconditionalPipeline) or pipe.device.type != "cpu":
        batches = []
        for batch in generate(pipe, *arguments, inputs=inputs, calibration=calibration):
            on_batch(len(batch.images))
            batches.append(batch)
        return batches
    numbers = range(math.ceil(num_images / batch_size))
    cores = torch.get_num_threads()
    workers = min(cores, len(numbers))
    shares = [frozenset(numbers) - frozenset(numbers[worker::workers]) for worker in range(workers)]
    stopped = threading.Event()

    def work(skip: frozenset[int]) -> list[Batch]:
        torch.set_num_threads(1)
        # A scheduler serves one run at a time; the network is shared.
        own = UnconditionalPipeline(pipe.unet, copy.deepcopy(pipe.scheduler))
        own.set_progress_bar_config(disable=True)
        done: list[Batch] = []
        for batch in generate(own, *arguments, skip, calibration=calibration):
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
    """Judges sampled settings against a reference of real images, and against the full-precision images.

    extractor, reference: what sees the images, and what it saw of the real ones; None: the embedded CIFAR-10 network
    and test set. Raises ValueError where only the reference's statistics are known.
    """

    def __init__(
        self,
        full_precision: torch.Tensor,
        extractor: FeatureExtractor | None = None,
        reference: FeatureSet | None = None,
    ) -> None:
        self.extractor = CifarExtractor() if extractor is None else extractor
        self.reference = FeatureSet.of_reference(load_reference()) if reference is None else reference
        if self.reference.kept is None:
            raise ValueError("The kernel distance needs the images of the reference: statistics alone do not say it.")
        self.full_precision = full_precision
        self._real = self.reference.kept.pooled
        self._within_reference = mean_kernel_within(self._real)

    def kernel_distance(self, images: torch.Tensor) -> float:
        """The kernel distance of images uint8 [n, 3, H, W]."""
        return kernel_distance(self.terms(images)).item()

    def terms(self, images: torch.Tensor) -> KernelTerms:
        """What pairs images uint8 [n, 3, H, W] with others in a difference of kernel distances."""
        return self._terms(self._features(images))

    def judge(self, images: torch.Tensor) -> PairableFigures:
        """The figures of images uint8 [n, 3, H, W], each with its 95 % bootstrap interval."""
        features = self._features(images)
        terms = self._terms(features)
        errors = mean_squared_error(images, self.full_precision)
        return PairableFigures(
            bootstrap_kernel_distance(terms),
            bootstrap_frechet(features, self.reference.pooled),
            bootstrap_psnr(errors) if bool(errors.any()) else None,
            terms,
        )

    def inception_score(self, images: torch.Tensor) -> Estimate:
        """The Inception Score, by the judge's extractor, of images uint8 [n, 3, H, W].

        Raises ValueError where the extractor does not classify.
        """
        logits = [features.logits for features in self._seen(images)]
        classified = [scores for scores in logits if scores is not None]
        if len(classified) < len(logits):
            raise ValueError("The Inception Score needs an extractor that classifies.")
        return inception_score(torch.cat(classified))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([features.pooled for features in self._seen(images)])

    def _seen(self, images: torch.Tensor) -> list[Features]:
        return [self.extractor(batch) for batch in torch.split(images, _JUDGED_AT_ONCE)]

    def _terms(self, features: torch.Tensor) -> KernelTerms:
        return kernel_terms(features, self._real, self._within_reference)


def compare(ours: PairableFigures, rival: PairableFigures, setting: Setting) -> Verdict:
    """The verdict on a row against a rival with that setting, paired by image."""
    return Verdict(setting, bootstrap_kernel_difference(ours.terms, rival.terms))
