"""The noise levels between which a scheduler steps, and a finer grid of them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from iec.pipelines.straight import scales_input
from iec.runtime import SpacedDDIMScheduler

#: How a state holds its noise: x0 sqrt(alpha-bar) + n sqrt(1 - alpha-bar), x0 + s n, or x0 (1 - sigma) + n sigma.
Kind = Literal["preserving", "exploding", "flow"]


@dataclass(frozen=True)
class NoiseLevels:
    """kind: of the states. timesteps: T. levels: T + 1, those of the states, the last one that of the end.

    A level is s, the noise-to-signal ratio; of flow matching it is sigma. float64 numbers.
    """

    kind: Kind
    timesteps: tuple[float, ...]
    levels: tuple[float, ...]

    def signal(self, i: int) -> float:
        """By what state i is divided so that the ODE is straight in its level."""
        return 1 / math.sqrt(1 + self.levels[i] ** 2) if self.kind == "preserving" else 1.0

    def step(self, i: int, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """The first-order step from state i [B, ...] along h."""
        here, there = self.signal(i), self.signal(i + 1)
        return there / here * x + there * (self.levels[i + 1] - self.levels[i]) * h


def noise_levels(scheduler: Any) -> NoiseLevels:
    """The levels of a scheduler whose timesteps are set.

    Raises ValueError where they are not known: of second-order schedulers that list a timestep twice, and of those with
    another kind of state.
    """
    name = type(scheduler).__name__
    config = scheduler.config
    timesteps = torch.as_tensor(scheduler.timesteps).double().tolist()
    if config.get("sigma_data") is not None or getattr(scheduler, "order", 1) != 1:
        raise ValueError(
            f"A correction cannot be fitted to {name}, whose steps have several parts or another kind of state: "
            "use DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler."
        )
    if isinstance(scheduler, SpacedDDIMScheduler):
        pairs = scheduler._alpha_pairs
        return NoiseLevels("preserving", tuple(timesteps), tuple(map(_ratio, [*(a for a, _ in pairs), pairs[-1][1]])))
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(timesteps) + 1:
        levels = tuple(torch.as_tensor(sigmas).double().tolist())
        if _is_flow(scheduler):
            return NoiseLevels("flow", tuple(timesteps), levels)
        return NoiseLevels("exploding" if scales_input(scheduler) else "preserving", tuple(timesteps), levels)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    final = getattr(scheduler, "final_alpha_cumprod", None)
    if alphas is None or final is None:
        raise ValueError(
            f"The noise levels of {name} are not known, so a correction cannot be fitted to it: "
            "use DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler."
        )
    known = [float(alphas[int(t)]) for t in timesteps] + [float(final)]
    return NoiseLevels("preserving", tuple(timesteps), tuple(map(_ratio, known)))


@dataclass(frozen=True)
class FineGrid:
    """Levels with more steps between those of a coarse grid; coarse: for each fine step, that which it is part of."""

    levels: NoiseLevels
    coarse: tuple[int, ...]


def refined(scheduler: Any, substeps: int) -> FineGrid:
    """The levels of a scheduler whose timesteps are set, with at most `substeps` steps in each of its own.

    Whole timesteps stay whole, so that a short step has fewer. The last step, too, is refined down to timestep 0.
    """
    given = noise_levels(scheduler)
    ends = [*given.timesteps[1:], 0.0]
    whole = all(t == int(t) for t in given.timesteps) and given.kind != "flow"
    table = None if given.kind == "flow" else _table(scheduler)
    timesteps: list[float] = []
    levels: list[float] = []
    coarse: list[int] = []
    for i, (start, end) in enumerate(zip(given.timesteps, ends, strict=True)):
        last = i == len(ends) - 1
        # From the last timestep down to timestep 0, and from there to the end of no noise.
        available = int(abs(start - end)) + last if whole else substeps if start != end else 1
        count = 1 if given.levels[i] == given.levels[i + 1] else max(1, min(substeps, available))
        for k, t in enumerate(_between(start, end, count, whole, to_end=last and given.kind != "flow")):
            timesteps.append(t)
            levels.append(given.levels[i] if k == 0 else _level(given, i, k / count, t, table))
            coarse.append(i)
    return FineGrid(NoiseLevels(given.kind, tuple(timesteps), (*levels, given.levels[-1])), tuple(coarse))


def _between(start: float, end: float, count: int, whole: bool, to_end: bool) -> list[float]:
    # A last step ends at no noise, which has no timestep: timestep 0 is then the beginning of its last part.
    parts = max(1, count - 1) if to_end else count
    found = [start + (end - start) * k / parts for k in range(count)]
    return [float(round(t)) for t in found] if whole else found


def _level(given: NoiseLevels, i: int, share: float, timestep: float, table: np.ndarray[Any, Any] | None) -> float:
    if table is None:
        return given.levels[i] + share * (given.levels[i + 1] - given.levels[i])
    return math.exp(float(np.interp(timestep, np.arange(len(table)), table)))


def _table(scheduler: Any) -> np.ndarray[Any, Any]:
    """log s of every training timestep."""
    alphas = scheduler.alphas_cumprod.double().cpu().clamp(1e-12, 1 - 1e-12)
    table: np.ndarray[Any, Any] = (0.5 * ((1 - alphas) / alphas).log()).numpy()
    return table


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return bool(config.get("use_flow_sigmas")) or not hasattr(scheduler, "alphas_cumprod")


def _ratio(alpha: float) -> float:
    return math.sqrt(1 / alpha - 1)
