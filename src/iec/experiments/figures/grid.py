"""The same seeds in full precision, without and with correction, as a picture grid."""

from dataclasses import asdict

from iec.evaluation.bootstrap import Estimate, bootstrap_mean, bootstrap_psnr
from iec.evaluation.psnr import mean_squared_error
from iec.experiments.figures.config import FigureConfig
from iec.experiments.figures.drawing import Drawing
from iec.experiments.measuring import Measurements
from iec.experiments.settings import Setting
from iec.experiments.spread import signed_percent, spread
from iec.reports.grid import picture_grid, png_bytes
from iec.reports.table import Column, Row, Table

_SHOWN = 10
_CAVEAT = (
    "Judged over {images} images, of which the first are shown. It is fidelity to full precision: whether the images "
    "are better as images is what the table says."
)


def grid_settings(figure: FigureConfig) -> list[Setting]:
    """Full precision, then the system without and with each correction."""
    [system] = figure.table.systems
    return [figure.table.setting(), *figure.table.settings(system)]


def draw_grid(figure: FigureConfig, measurements: Measurements) -> Drawing:
    """The first images of every row; what they say is judged over all images."""
    table = figure.table
    settings = grid_settings(figure)
    rows = [measurements.row(setting, table.images, table.seed, table.spacing) for setting in settings]
    picture = picture_grid([(setting.label, row.images[:_SHOWN]) for setting, row in zip(settings, rows, strict=True)])
    errors = [mean_squared_error(row.images, rows[0].images) for row in rows[1:]]
    differences = [bootstrap_mean(error - errors[0]) for error in errors[1:]]
    sentences = [
        _sentence(setting, difference, errors[0].mean().item())
        for setting, difference in zip(settings[2:], differences, strict=True)
    ]
    return Drawing(
        ".png",
        png_bytes(picture),
        "One row per setting, one column per seed",
        [*sentences, _CAVEAT.format(images=table.images)],
        Table(
            "",
            (Column("setting", align="left"), Column("PSNR to full precision", note="dB")),
            tuple(
                Row(
                    (
                        setting.label,
                        spread(bootstrap_psnr(error), 1, 1) if bool(error.any()) else "the same images",
                    )
                )
                for setting, error in zip(settings[1:], errors, strict=True)
            ),
        ),
        {
            "rows": [{**row.record, "setting": setting.label} for setting, row in zip(settings, rows, strict=True)],
            "mean_squared_error": [error.mean().item() for error in errors],
            "differences": [asdict(difference) for difference in differences],
        },
    )


def _sentence(setting: Setting, difference: Estimate, without: float) -> str:
    if not difference.separable:
        outcome = "cannot be told from that without correction"
    else:
        outcome = f"is {'lower' if difference.value < 0 else 'higher'} than without correction"
    change = f"{signed_percent(100 * difference.value / without, 1)} %" if without else "there was none"
    return f"{setting.label}: the mean squared difference to full precision at the same seeds {outcome} ({change})."
