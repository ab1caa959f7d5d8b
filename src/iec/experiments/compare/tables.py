"""A comparison as tables, as points of a plot, and in one sentence."""

from iec.experiments.compare.request import cache_of
from iec.experiments.compare.rivals import ROLES, Role
from iec.experiments.compare.running import ComparedRow, Comparison, Contest, same_network
from iec.experiments.corrections import FittedCorrection, describe_correction
from iec.experiments.rows import Verdict
from iec.experiments.settings import quantizes
from iec.experiments.spread import difference_spread, kernel_spread, psnr_spread, spread
from iec.reports.plot import Point, pareto_front
from iec.reports.table import Column, Row, RowStyle, Table

_STYLES: dict[str, RowStyle] = {"wins": "win", "loses": "lose", "not separable": ""}
_WORDS = {"wins": "wins over", "loses": "loses to", "not separable": "cannot be told from"}
_KINDS: dict[Role, str] = {
    "full precision": "full precision",
    "without correction": "plain cache",
    "corrected": "corrected",
    "another cache interval": "plain cache",
    "more or fewer DDIM steps": "plain steps",
    "another solver": "another solver",
    "calibrated without a cache": "corrected",
    "cache refresh without correction": "cache refresh only",
    "changed network, no further cost": "changed network",
}


def verdict_sentence(comparison: Comparison) -> str:
    """Whether correction pays here: each corrector against the best rival of no more cost."""
    request, outcomes = comparison.request, [contest.best.outcome for contest in comparison.contests]
    if "wins" in outcomes:
        winners = [_corrector(contest) for contest in comparison.contests if contest.best.outcome == "wins"]
        head = f"Correction pays here, by {_listed(winners)}"
    elif "not separable" in outcomes:
        head = f"Correction is not shown to pay here with {request.images} images"
    else:
        head = "Correction does not pay here"
    parts = [
        f"{_corrector(contest)} (cost {contest.ours.cost:.1f}) {_WORDS[contest.best.outcome]} "
        f"{contest.best.rival.label} (cost {comparison.row(contest.best.rival).cost:.1f})"
        for contest in comparison.contests
    ]
    return f"{head}: on {request.plain.label}, {'; '.join(parts)}. {_best_sentence(comparison)}"


def main_table(comparison: Comparison) -> Table:
    """Every row, those of one role together, cheapest first; the rows of the Pareto front are marked."""
    outcomes = {contest.ours.setting: contest.best.outcome for contest in comparison.contests}
    front = {point.label for point in pareto_front(plot_points(comparison))}
    styles = {setting: _STYLES[outcome] for setting, outcome in outcomes.items()}
    styles.setdefault(comparison.rows[0].setting, "reference")
    ordered = sorted(comparison.rows, key=lambda row: (ROLES.index(row.role), row.cost))
    rows = [Row(_cells(row, row.setting.label in front), styles.get(row.setting, ""), row.role) for row in ordered]
    titles = comparison.request.titles
    columns = (
        Column("setting", align="left"),
        Column("cost", note="full evaluations"),
        Column(f"{titles.kernel} x1000", note="lower is better"),
        Column("front", align="center"),
        Column(titles.frechet, note="lower is better"),
        Column("PSNR", note="to full precision, dB"),
        Column("full", note="evaluations"),
        Column("cached", note="evaluations"),
        Column("time", note="s"),
        Column("memory", note="weights and peak, MB"),
    )
    return Table(_title(comparison), columns, tuple(rows), _notes(comparison))


def contest_table(comparison: Comparison) -> Table:
    """Every corrected row against each rival of no more cost, the best rival first."""
    kernel = {row.setting: row.kernel.value for row in comparison.rows}
    rows = tuple(
        _contest_row(verdict, comparison, f"{contest.ours.setting.label}, cost {contest.ours.cost:.1f}")
        for contest in comparison.contests
        for verdict in sorted(contest.verdicts, key=lambda verdict: kernel[verdict.rival])
    )
    note = (
        f"{comparison.request.images} images, paired by seed; a win or a loss is a 95 % bootstrap interval that "
        "excludes zero. The best rival is the first of each group. Rivals are uncorrected; those of IEC's rows, which "
        "evaluate again, may have a calibrated or Adams' correction too, since that is what the same cost buys."
    )
    return Table("Correction against what no more cost buys otherwise", _contest_columns(comparison), rows, (note,))


def control_table(comparison: Comparison) -> Table:
    """What each corrector changes in its own model, and in full precision."""
    rows = tuple(_contest_row(verdict, comparison, setting.label) for setting, verdict in comparison.controls)
    note = (
        "What it gains on full precision is the solver's doing: there is no quantization or caching error to correct."
    )
    title = "Correction against the same model without it, whatever it costs"
    return Table(title, _contest_columns(comparison), rows, (note,))


def plot_points(comparison: Comparison) -> list[Point]:
    """The rows whose evaluations cost the same; beside a quantized model, full precision's do not."""
    points = []
    for row in comparison.rows:
        if same_network(row.setting, comparison.request):
            low, high = min(row.kernel.low, row.kernel.value), max(row.kernel.high, row.kernel.value)
            values = (1000 * row.kernel.value, 1000 * low, 1000 * high)
            points.append(Point(row.setting.label, row.cost, *values, _kind(row, comparison)))
    return points


def _kind(row: ComparedRow, comparison: Comparison) -> str:
    if row.role == "without correction" and row.setting.interval == 1:
        return "plain steps"
    return "corrected" if row.setting.correction is not None and row.role == "full precision" else _KINDS[row.role]


def _cells(row: ComparedRow, on_front: bool) -> tuple[str, ...]:
    record = row.stored.record
    peak = record.get("peak_memory_mb")  # rows of earlier versions lack it
    return (
        row.setting.label,
        f"{row.cost:.2f}",
        kernel_spread(row.kernel),
        "yes" if on_front else "",
        spread(row.frechet, 1, 2),
        psnr_spread(row.psnr),
        str(record["full_evaluations"]),
        str(record["cached_evaluations"]),
        f"{record['seconds']:.1f}",
        "" if peak is None else f"{record['model_bytes'] / 1e6 + peak:.0f}",
    )


def _contest_columns(comparison: Comparison) -> tuple[Column, ...]:
    return (
        Column("against", align="left"),
        Column("its cost", note="full evaluations"),
        Column(f"{comparison.request.titles.kernel} x1000", note="corrected minus rival, paired"),
        Column("correction", align="left"),
    )


def _contest_row(verdict: Verdict, comparison: Comparison, group: str) -> Row:
    cells = (
        verdict.rival.label,
        f"{comparison.row(verdict.rival).cost:.2f}",
        difference_spread(verdict.difference),
        verdict.outcome,
    )
    return Row(cells, _STYLES[verdict.outcome], group)


def _title(comparison: Comparison) -> str:
    request = comparison.request
    model = "the embedded CIFAR-10 model" if request.model is None else request.model
    return f"{model}: {request.plain.label} {request.spacing}, with and without correction"


def _notes(comparison: Comparison) -> tuple[str, ...]:
    request, unit = comparison.request, comparison.unit
    quad = request.spacing == "quad"
    grids = (
        "Heun, DPM++ 2M, UniPC, DEIS and iPNDM run on the quad grid, a timestep that repeats moved on by one"
        if quad
        else "Heun and iPNDM run on DDIM's grid, DPM++ 2M, UniPC and DEIS on their own even one"
    )
    cached = ""
    if cache_of(request.technique) is not None:
        cached = f" plus {unit.cached_fraction:.3f} for each cached one (multiply-adds)"
    kernel, frechet = request.titles.kernel, request.titles.frechet
    seen = "our small CIFAR-10 network" if request.features == "cifar" else "Inception"
    notes = [
        f"{request.images} images per row for every figure, seed {request.seed}; 95 % bootstrap intervals. {kernel}, "
        f"the verdict, and {frechet} use the features of {seen}, of so many images: they are no KID or FID.",
        f"{frechet} is biased upwards at {request.images} images: compare it within this table only. PSNR is fidelity "
        f"to the images of full precision, T={request.num_steps}, at the same seeds, not quality.",
        f"Cost is full evaluations{cached}; a rival has as many steps as the cost of a corrected row pays for. "
        "Memory is the weights and what sampling held beside them.",
        f"{grids}; DEIS ends at the noise of timestep 0. PLMS starts at another timestep, on an even "
        "grid, so that its PSNR says little.",
        "The epsilon scale and the window of the time shift are those of a few, no change not among them, with the "
        f"lowest {kernel} over {request.tuning_images} images of the calibration seed (seed {request.seed} + 2000).",
        "Front: no other row is both as cheap and better.",
    ]
    fitted = [found for found in request.corrections if isinstance(found, FittedCorrection)]
    if fitted:
        notes.append(
            f"Fitted, to each model by itself: {_listed([describe_correction(found) for found in fitted])}, over "
            f"{request.calibration.samples} trajectories of seed {request.calibration.seed} + 2000, which are not "
            "judged. They aim at the exact solution, so their PSNR to full precision's own steps falls where they "
            "remove the solver's error."
        )
    if quantizes(request.technique):
        notes.append(
            "Quantized arithmetic is simulated: its time is that of the simulation. An evaluation in full precision "
            "costs more than a quantized one, so those rows are no rivals and not on the front."
        )
    return tuple(notes)


def _corrector(contest: Contest) -> str:
    correction = contest.ours.setting.correction
    assert correction is not None
    return describe_correction(correction)


def _best_sentence(comparison: Comparison) -> str:
    """Which of the corrected rows and their rivals is best, separable or not."""
    contests = comparison.contests
    settings = [contest.ours.setting for contest in contests] + [v.rival for one in contests for v in one.verdicts]
    best = min((comparison.row(setting) for setting in settings), key=lambda row: row.kernel.value)
    return (
        f"Of them and all their rivals, {best.setting.label} (cost {best.cost:.1f}) has the lowest "
        f"{comparison.request.titles.kernel}."
    )


def _listed(parts: list[str]) -> str:
    if len(parts) < 3:
        return " and ".join(parts)
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"
