"""The rivals of a corrected setting: what else its cost buys on the same network."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from iec.evaluation.cost import EvaluationCost
from iec.experiments.compare.request import Request, cache_of
from iec.experiments.corrections import CALIBRATED
from iec.experiments.samplers.sampling import Sampling, Solver
from iec.experiments.settings import Setting, rivals
from iec.method.config import IECConfig
from iec.method.ddim import spaced_timesteps

#: What a row is in a comparison; also the headings of its table, in their order.
Role = Literal[
    "full precision",
    "without correction",
    "corrected",
    "another cache interval",
    "more or fewer DDIM steps",
    "another solver",
    "calibrated without a cache",
    "cache refresh without correction",
    "changed network, no further cost",
]
ROLES: tuple[Role, ...] = get_args(Role)

_SOLVERS: tuple[Solver, ...] = ("heun", "dpm++2m", "unipc", "deis", "ipndm", "plms")
_SCALES = (0.98, 0.99, 0.995, 1.005, 1.01, 1.02)
_WINDOWS = (10, 20, 40, 80)
_LONGEST = 1000


@dataclass(frozen=True)
class Candidate:
    """A setting of a comparison, and what it is there for."""

    role: Role
    setting: Setting


def candidates(request: Request, unit: EvaluationCost) -> list[Candidate]:
    """Every setting but those whose parameter is chosen first, each once, in the order of their roles."""
    found = [*_own(request), *(rival for setting in request.corrected for rival in _rivals(setting, request, unit))]
    first: dict[Setting, Candidate] = {}
    for candidate in found:
        first.setdefault(candidate.setting, candidate)
    return sorted(first.values(), key=lambda candidate: ROLES.index(candidate.role))


def tuned_families(request: Request) -> list[list[Setting]]:
    """The settings of which the best one on the calibration seed is compared: epsilon scales, and time shifts."""
    return [[replace(request.plain, sampler=sampling) for sampling in family] for family in tuned_samplings()]


def tuned_samplings() -> list[list[Sampling]]:
    """The changes to a network that cost nothing, of which one each is chosen: epsilon scales, and time shifts."""
    return [[Sampling(epsilon_scale=v) for v in _SCALES], [Sampling(time_shift=v) for v in _WINDOWS]]


def affordable(setting: Setting, budget: float, unit: EvaluationCost, request: Request) -> Setting | None:
    """`setting` with as many steps as `budget` (in full evaluations) pays for; None where it pays for none."""
    longest = None
    for num_steps in range(2, _LONGEST + 1):
        trial = replace(setting, num_steps=num_steps)
        if possible(trial, request):
            if trial.cost(unit) > budget + 1e-9:
                break
            longest = trial
    return longest


def possible(setting: Setting, request: Request) -> bool:
    """Whether the setting's solver, its technique and the spacing take so many steps."""
    cache = cache_of(setting.technique)
    try:
        if cache is not None:
            cache.require_fit(setting.num_steps)
        setting.sampler.require_steps(setting.num_steps)
        # Heun's grid has a timestep for every two evaluations.
        steps = (setting.num_steps + 1) // 2 if setting.sampler.solver == "heun" else setting.num_steps
        spaced_timesteps(steps, request.spacing)
    except ValueError:
        return False
    return True


def _own(request: Request) -> Iterator[Candidate]:
    full = Setting(request.num_steps)
    yield Candidate("full precision", full)
    if request.technique is not None:
        yield from (Candidate("full precision", replace(full, correction=found)) for found in request.corrections)
        yield Candidate("without correction", request.plain)
    yield from (Candidate("corrected", setting) for setting in request.corrected)


def _rivals(setting: Setting, request: Request, unit: EvaluationCost) -> Iterator[Candidate]:
    budget = setting.cost(unit)
    for rival in rivals(setting, unit):
        if rival.num_steps == request.num_steps and possible(rival, request):
            yield Candidate("another cache interval", rival)
    longer = [
        affordable(request.plain, budget, unit, request),
        affordable(request.plain.plain(1), budget, unit, request),
        replace(request.plain, num_steps=2 * request.num_steps),
    ]
    paid = [rival for rival in longer if rival is not None and possible(rival, request)]
    yield from (Candidate("more or fewer DDIM steps", rival) for rival in paid)
    solvers = [replace(request.plain, sampler=Sampling(solver)) for solver in _SOLVERS]
    solved = [affordable(rival, budget, unit, request) for rival in solvers]
    yield from (Candidate("another solver", rival) for rival in solved if rival is not None)
    uncached = affordable(request.plain.plain(1), budget, unit, request)
    if cache_of(request.technique) is not None and uncached is not None:
        yield Candidate("calibrated without a cache", replace(uncached, correction=CALIBRATED))
    if cache_of(request.technique) is not None and isinstance(setting.correction, IECConfig):
        refresh = replace(setting.correction, relaxation=0, cache="refresh")
        yield Candidate("cache refresh without correction", replace(setting, correction=refresh))
