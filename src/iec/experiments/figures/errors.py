"""The error of the state over the sampling steps, without and with correction, one panel per system."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch

from iec.evaluation.bootstrap import Estimate, bootstrap_mean
from iec.evaluation.metrics.latent import latent_error_estimates
from iec.experiments.figures.config import FigureConfig
from iec.experiments.figures.drawing import Drawing
from iec.experiments.figures.latents import LatentErrors
from iec.experiments.settings import Setting, describe
from iec.experiments.spread import significant_spread
from iec.reports.lines import Line, error_panel, line_plot
from iec.reports.table import Column, Row, Table

_CONTROL = "full precision with correction"


@dataclass(frozen=True)
class PairedErrors:
    """One system's errors at every step: the mean without and with correction, and of the difference, paired."""

    system: str
    without: Sequence[Estimate]
    corrected: Sequence[Estimate]
    difference: Sequence[Estimate]

    def steps(self, sign: int) -> list[int]:
        """The steps where correction changes the error: -1 where it lowers it, 1 where it raises it."""
        return [step for step, found in enumerate(self.difference) if found.separable and sign * found.value > 0]


def error_settings(figure: FigureConfig) -> list[Setting]:
    """Corrected full precision, as the control, and every system without and with correction."""
    pairs = [figure.table.settings(system)[:2] for system in figure.table.systems]
    control = figure.table.setting(None, pairs[0][1].correction)
    return [control, *(setting for pair in pairs for setting in pair)]


def compare_errors(system: str, without: torch.Tensor, corrected: torch.Tensor) -> PairedErrors:
    """Both errors [T, n] of the same n images, n at least 10, step by step."""
    return PairedErrors(
        system,
        latent_error_estimates(without),
        latent_error_estimates(corrected),
        [bootstrap_mean(step) for step in corrected - without],
    )


def draw_errors(figure: FigureConfig, errors: LatentErrors) -> Drawing:
    """The panels, and where correction lowers the error and where it raises it."""
    control_setting, *settings = error_settings(figure)
    control = latent_error_estimates(errors.row(control_setting))
    found = [
        compare_errors(describe(without.technique), errors.row(without), errors.row(corrected))
        for without, corrected in zip(settings[::2], settings[1::2], strict=True)
    ]
    panels = [
        error_panel(
            one.system,
            [
                error_line("without correction", one.without),
                error_line("with correction", one.corrected),
                error_line(_CONTROL, control, dashed=True),
            ],
        )
        for one in found
    ]
    return Drawing(
        ".svg",
        line_plot(panels).encode(),
        "The error of the state over the sampling steps",
        [*map(error_sentence, found), _control_sentence(control)],
        _table(found),
        {
            "systems": [_numbers(one) for one in found],
            "full_precision_with_correction": [asdict(step) for step in control],
        },
    )


def error_sentence(found: PairedErrors) -> str:
    """Where correction lowers the error, where it raises it, and what is left of it at the end."""
    lower, higher = found.steps(-1), found.steps(1)
    total, last = len(found.difference), found.difference[-1]
    parts = [
        f"{word} at {len(steps)} of {total} steps ({step_ranges(steps)})"
        for word, steps in (("lower", lower), ("higher", higher))
        if steps
    ]
    where = f"is {' and '.join(parts)}" if parts else f"cannot be told from that without at any of {total} steps"
    before, after = found.without[-1].value, found.corrected[-1].value
    if not last.separable:
        end = "after the last step the two cannot be told apart"
    else:
        end = f"after the last step it is {after / before:.2f} times that without" if before else "it ends above zero"
    return f"{found.system}: with correction the error {where}; {end}."


def step_ranges(steps: Sequence[int]) -> str:
    """Step numbers as runs: `0-3, 7`."""
    runs = [[step for _, step in run] for _, run in groupby(enumerate(steps), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _control_sentence(control: Sequence[Estimate]) -> str:
    return (
        "The state is compared with that of full precision without correction at the same seeds and the same step. "
        "Correction is also another solver: it moves the state of the full-precision model too, by "
        f"{significant_spread(control[-1])} after the last step (the dashed line)."
    )


def error_line(name: str, steps: Sequence[Estimate], dashed: bool = False) -> Line:
    """The mean error after every step, with its interval."""
    values = [step.value for step in steps]
    # A percentile interval may miss its value by rounding where all errors are alike.
    low = [min(step.low, step.value) for step in steps]
    high = [max(step.high, step.value) for step in steps]
    return Line(name, range(len(values)), values, low, high, dashed)


def _table(found: Sequence[PairedErrors]) -> Table:
    columns = (
        Column("after step", align="left", note="the first is 0"),
        Column("without correction", note="mean squared error"),
        Column("with correction", note="mean squared error"),
        Column("difference", note="paired"),
    )
    rows = []
    for one in found:
        total = len(one.without)
        for step in sorted({total * part // 4 - 1 for part in (1, 2, 3, 4)} - {-1}):
            estimates = (one.without[step], one.corrected[step], one.difference[step])
            rows.append(Row((str(step), *map(significant_spread, estimates)), "", one.system))
    return Table("", columns, tuple(rows))


def _numbers(one: PairedErrors) -> dict[str, object]:
    series = {"without": one.without, "corrected": one.corrected, "difference": one.difference}
    return {"system": one.system, **{name: [asdict(step) for step in steps] for name, steps in series.items()}}
