"""Local reconstruction beside a cache: which layers cached steps run, and what they are given there (spec 4.4)."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iec.efficient.cachequant.held import HeldFeatures
from iec.efficient.cachequant.plan import CacheQuantPlan
from iec.efficient.cachequant.reentry import reentry_resnet
from iec.efficient.caching.config import CalibratedSteps
from iec.efficient.caching.deepcache import branch_of, cached_class
from iec.efficient.caching.features import features_of
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig
from iec.efficient.quantization.reconstruction.reconstruct import reconstruct
from iec.efficient.quantization.reconstruction.roles import BEFORE, REENTERED, SKIPPED, Reentry
from iec.efficient.quantization.reconstruction.rows import take
from iec.efficient.quantization.reconstruction.samples import Samples, collect_samples
from iec.efficient.quantization.reconstruction.units import frozen_copy
from iec.efficient.trajectories import Trajectories
from iec.method.clock import Clock

Progress = Callable[[int, int], None]


def collect_cached(
    unet: Any,
    plan: CacheQuantPlan,
    trajectories: Trajectories,
    config: ReconstructionConfig,
    on_progress: Progress = lambda done, total: None,
) -> tuple[Samples, Reentry]:
    """Calibration samples of `plan`, and what its cache changes for them."""
    mains = _Mains(plan)
    with features_of(unet, plan.config.branch, mains.add):
        samples = collect_samples(
            unet, trajectories, plan.num_steps, config.samples, plan.full_steps, mains.expect, on_progress
        )
    full = torch.tensor(plan.full_steps, device=samples.steps.device)
    assert plan.quantization is not None
    roles = layer_roles(unet, branch_of(unet, plan.cache), plan.quantization.weights, samples)
    resnet, _ = reentry_resnet(unet, branch_of(unet, plan.cache))
    return samples, Reentry(resnet, torch.cat(mains.taken), ~torch.isin(samples.steps, full), roles)


def reconstruct_cached(
    unet: Any,
    plan: CacheQuantPlan,
    samples: Samples,
    reentry: Reentry,
    folder: str | Path | None = None,
    on_progress: Callable[[int], None] = lambda left: None,
) -> CacheQuantPlan:
    """`plan` with its units reconstructed, which takes over from the correction (DEC) of quantized layers.

    The arguments and errors are those of `reconstruct`.
    """
    assert plan.quantization is not None
    found = reconstruct(unet, plan.quantization, samples, reentry, folder, on_progress)
    return replace(plan, quantization=found, layers={})


def layer_roles(unet: Any, branch: int, layers: Iterable[str], samples: Samples) -> dict[str, int]:
    """Of each of these layers: 0 where cached steps run it before they re-enter, 1 where they skip it, 2 where they run
    it from there on. A full and a cached step are run to see."""
    roles = dict.fromkeys(layers, SKIPPED)
    probe = frozen_copy(unet)
    probe.__class__ = cached_class(type(probe), CalibratedSteps((0,), 2, branch))
    now = BEFORE

    def enter(module: Any, args: Any) -> None:
        nonlocal now
        now = REENTERED

    def note(name: str) -> Callable[[Any, Any], None]:
        def hook(module: Any, args: Any) -> None:
            roles[name] = now

        return hook

    one = take(dict(samples.inputs), len(samples), slice(0, 1))
    with Clock(2) as clock, torch.no_grad():
        probe(**one)
        clock.advance()
        probe.get_submodule(reentry_resnet(unet, branch)[0]).register_forward_pre_hook(enter)
        for name in roles:
            probe.get_submodule(name).register_forward_pre_hook(note(name))
        probe(**one)
    return roles


class _Mains:
    """The stored and corrected features of the rows that are sampled; of full steps, their own, which nothing uses."""

    def __init__(self, plan: CacheQuantPlan) -> None:
        self.plan = plan
        self.taken: list[torch.Tensor] = []
        self.held = HeldFeatures(plan.full_steps, plan.memory)
        self.rows: torch.Tensor | None = None

    def expect(self, step: int, rows: torch.Tensor) -> None:
        """These rows are sampled of the evaluation that begins."""
        self.rows = rows

    def add(self, step: int, feature: torch.Tensor) -> None:
        """The feature of the evaluation that ends."""
        used = self.held.used(step, feature)
        if self.rows is not None:
            used = used[self.rows.to(feature.device)]
            self.taken.append((used if step in self.plan.full_steps else self.plan.corrected(used, step)).float())
        self.rows = None
