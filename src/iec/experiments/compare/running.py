"""A comparison measured and judged: rows that are there are not sampled again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from iec.evaluation.bootstrap import Estimate
from iec.evaluation.cost import EvaluationCost
from iec.experiments.compare.errors import error_settings, measured_errors
from iec.experiments.compare.request import Request
from iec.experiments.compare.rivals import ROLES, Candidate, Role, candidates, tuned_families
from iec.experiments.corrections import FittedCorrection, corrects, evaluates
from iec.experiments.plans import needs_plan
from iec.experiments.results import StoredRow
from iec.experiments.rows import Judge, Verdict, compare
from iec.experiments.settings import Setting, quantizes


@dataclass(frozen=True)
class ComparedRow:
    """One row: what it is there for, its images with what they cost, and its figures."""

    role: Role
    setting: Setting
    stored: StoredRow
    kernel: Estimate
    frechet: Estimate
    psnr: Estimate | None

    @property
    def cost(self) -> float:
        """F + c C as measured, in full evaluations per image."""
        return float(self.stored.record["cost"])


@dataclass(frozen=True)
class Contest:
    """A corrected row against every rival of no more cost on the same network: those without correction, and of one
    that evaluates again also those whose correction evaluates nothing.

    best: the verdict against the one of them with the lowest kernel distance.
    """

    ours: ComparedRow
    verdicts: tuple[Verdict, ...]
    best: Verdict


@dataclass(frozen=True)
class Workload:
    """What a comparison will take: its rows, those that choose a parameter, and how many plans have to be there."""

    candidates: tuple[Candidate, ...]
    families: tuple[tuple[Setting, ...], ...]
    evaluations: float
    images: int
    plans: int


@dataclass(frozen=True)
class Comparison:
    """Everything that was found. contests: one per corrector. controls: every corrected row, those of full precision
    too, against the same without correction. errors: of the state after every step, by setting.
    """

    request: Request
    unit: EvaluationCost
    rows: tuple[ComparedRow, ...]
    contests: tuple[Contest, ...]
    controls: tuple[tuple[Setting, Verdict], ...]
    errors: tuple[tuple[Setting, tuple[Estimate, ...]], ...] = ()

    def row(self, setting: Setting) -> ComparedRow:
        """The row of one setting."""
        return next(row for row in self.rows if row.setting == setting)


def workload(request: Request, unit: EvaluationCost) -> Workload:
    """What the comparison will sample where nothing is there yet."""
    found, families = candidates(request, unit), tuned_families(request)
    tried = [setting for family in families for setting in family]
    # Of each family, one more row is judged.
    settings = [candidate.setting for candidate in found] + [family[0] for family in families]
    evaluations = request.images * sum(setting.cost(unit) for setting in settings)
    evaluations += request.tuning_images * sum(setting.cost(unit) for setting in tried)
    followed = [Setting(request.num_steps), *error_settings(request)]
    plans = {
        (setting.technique, setting.num_steps, setting.sampler.solver)
        for setting in settings
        if setting.technique is not None and needs_plan(setting.technique)
    }
    fitted = {setting for setting in [*settings, *followed] if isinstance(setting.correction, FittedCorrection)}
    evaluations += request.error_images * sum(setting.cost(unit) for setting in followed)
    images = request.images * len(settings) + request.tuning_images * len(tried)
    images += request.error_images * len(followed)
    return Workload(tuple(found), tuple(map(tuple, families)), evaluations, images, len(plans) + len(fitted))


def run_comparison(
    request: Request,
    folder: Path,
    unit: EvaluationCost,
    work: Workload,
    judge_against: Callable[[torch.Tensor], Judge] = Judge,
    **callbacks: Any,
) -> Comparison:
    """Measure and judge every row of `work`, kept in `folder`; the callbacks are those of `Measurements`.

    judge_against: makes the judge from the full-precision images.
    """
    measurements = request.measurements(folder, **callbacks)

    def sampled(setting: Setting) -> StoredRow:
        return measurements.row(setting, request.images, request.seed, request.spacing)

    def tuning(setting: Setting) -> StoredRow:
        return measurements.row(setting, request.tuning_images, request.seed, request.spacing, calibration=True)

    full_precision = Setting(request.num_steps)
    reference = sampled(full_precision)
    judge = judge_against(reference.images)
    chosen = [
        best_of(family, lambda setting: judge.kernel_distance(tuning(setting).images)) for family in work.families
    ]
    found = [*work.candidates, *(Candidate(ROLES[-1], setting) for setting in chosen)]
    rows = [(one, reference if one.setting == full_precision else sampled(one.setting)) for one in found]
    errors = measured_errors(request, measurements, folder)
    return replace(judge_rows(request, unit, rows, judge), errors=errors)


def best_of(family: tuple[Setting, ...], distance: Callable[[Setting], float]) -> Setting:
    """The setting of the smallest distance."""
    return min(family, key=distance)


def judge_rows(
    request: Request, unit: EvaluationCost, sampled: list[tuple[Candidate, StoredRow]], judge: Judge
) -> Comparison:
    """The figures of all rows, the corrected ones against their rivals, and what correction changes in itself."""
    # The terms of a row take 8 n^2 bytes: only those of the corrected rows, and of one other, are held at once.
    by_setting = {candidate.setting: stored for candidate, stored in sampled}
    ours = {s: judge.judge(stored.images) for s, stored in by_setting.items() if _is_corrected(s)}
    rows: list[ComparedRow] = []
    verdicts: dict[Setting, list[Verdict]] = {setting: [] for setting in ours}
    controls: list[tuple[Setting, Verdict]] = []
    for candidate, stored in sampled:
        setting = candidate.setting
        figures = ours[setting] if setting in ours else judge.judge(stored.images)
        rows.append(ComparedRow(candidate.role, setting, stored, figures.kernel, figures.frechet, figures.psnr))
        for corrected, own in ours.items():
            if setting == replace(corrected, correction=None):
                controls.append((corrected, compare(own, figures, setting)))
            if corrected in request.corrected and _is_rival(candidate, stored, corrected, by_setting[corrected]):
                verdicts[corrected].append(compare(own, figures, setting))
    kernel = {row.setting: row.kernel.value for row in rows}
    contests = []
    for row in rows:
        if row.setting in request.corrected:
            of_row = verdicts[row.setting]
            contests.append(Contest(row, tuple(of_row), min(of_row, key=lambda verdict: kernel[verdict.rival])))
    return Comparison(request, unit, tuple(rows), tuple(contests), tuple(controls))


def same_network(setting: Setting, request: Request) -> bool:
    """Whether evaluations of `setting` cost what those of the compared model do: quantized ones are others."""
    return quantizes(setting.technique) == quantizes(request.technique)


def _is_corrected(setting: Setting) -> bool:
    return corrects(setting.correction)


def _is_rival(candidate: Candidate, stored: StoredRow, corrected: Setting, ours: StoredRow) -> bool:
    setting = candidate.setting
    if setting == corrected or quantizes(setting.technique) != quantizes(corrected.technique):
        return False
    # What costs no evaluation is what the cost of one that evaluates again buys otherwise; and fewer steps without a
    # cache have a plan of their own.
    free = not evaluates(setting.correction) and evaluates(corrected.correction)
    if _is_corrected(setting) and not free and candidate.role != "calibrated without a cache":
        return False
    return bool(stored.record["cost"] <= ours.record["cost"] + 1e-9)
