"""The study of the calibrated correction as a page: one table per system and number of steps."""

from pathlib import Path
from typing import Any

from iec.experiments.correction_study import CorrectionStudy, StudyRow
from iec.experiments.spread import difference_spread, kernel_spread, psnr_spread
from iec.reports.table import Column, Row, Table, to_markdown
from iec.storage.files import write_json, write_text

_COLUMNS = (
    Column("setting", align="left"),
    Column("cost", note="full evaluations"),
    Column("KD-cifar x1000", note="lower is better"),
    Column("each seed", align="left"),
    Column("PSNR", note="to the exact solution, dB"),
    Column("calibrated minus this", note="KD-cifar x1000, paired"),
    Column("the calibrated correction", align="left"),
)


def study_tables(groups: list[list[StudyRow]], study: CorrectionStudy) -> list[Table]:
    """One table per group."""
    return [_table(rows, study) for rows in groups]


def study_json(groups: list[list[StudyRow]]) -> dict[str, Any]:
    """The figures as JSON values."""
    return {"groups": [[_numbers(row) for row in rows] for rows in groups]}


def write_study(groups: list[list[StudyRow]], study: CorrectionStudy, folder: Path) -> Path:
    """Write correction.md and correction.json into `folder`; the page's path."""
    lines = [
        "# What the calibrated correction is worth",
        "",
        f"`iec reproduce correction`: the embedded model, quad, eta 0, {study.images} images of each seed; plans of "
        f"quantization and of corrections from {study.calibration.samples} trajectories of seed "
        f"{study.calibration.seed} + 2000. KD-cifar is the unbiased kernel distance over the features of our small "
        "CIFAR-10 network: no KID. The last columns hold the calibrated correction against every other row: it wins or "
        "loses where the 95 % bootstrap interval of the difference, paired by image, excludes zero. Quantized "
        f"arithmetic is simulated. The exact solution is full precision over {study.reference_steps} steps with Adams' "
        "rule.",
        "",
    ]
    for table in study_tables(groups, study):
        lines += [to_markdown(table), ""]
    write_json(folder / "correction.json", study_json(groups))
    path = folder / "correction.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


def _table(rows: list[StudyRow], study: CorrectionStudy) -> Table:
    base = rows[0].setting
    images = f"{rows[0].images} images, {len(rows[0].per_seed)} of {len(study.seeds)} seeds"
    return Table(f"{base.system}, T={base.num_steps} ({images})", _COLUMNS, tuple(map(_row, rows)))


def _row(row: StudyRow) -> Row:
    found = row.against
    cells = (
        row.setting.label,
        f"{row.cost:.1f}",
        kernel_spread(row.kernel),
        ", ".join(f"{value:.1f}" for value in row.per_seed),
        psnr_spread(row.psnr),
        "" if found is None else difference_spread(found.difference),
        "" if found is None else found.outcome,
    )
    return Row(cells, "reference" if found is None else "")


def _numbers(row: StudyRow) -> dict[str, Any]:
    found, psnr = row.against, row.psnr
    return {
        "setting": row.setting.label,
        "images": row.images,
        "cost": round(row.cost, 4),
        "kd_cifar": [row.kernel.value, row.kernel.low, row.kernel.high],
        "kd_cifar_x1000_per_seed": list(row.per_seed),
        "psnr": None if psnr is None else [psnr.value, psnr.low, psnr.high],
        "calibrated_minus_this": None
        if found is None
        else [found.difference.value, found.difference.low, found.difference.high],
        "calibrated": None if found is None else found.outcome,
    }
