"""From a figure's name to its drawing."""

from pathlib import Path
from typing import Any

from iec.experiments.figures.config import FigureConfig
from iec.experiments.figures.corrected_steps import draw_steps, steps_settings
from iec.experiments.figures.drawing import Drawing
from iec.experiments.figures.errors import draw_errors, error_settings
from iec.experiments.figures.grid import draw_grid, grid_settings
from iec.experiments.figures.latents import LatentErrors
from iec.experiments.settings import Setting

_SETTINGS = {"errors": error_settings, "steps": steps_settings, "grid": grid_settings}


class FigureSource:
    """What a figure is drawn from, kept in `folder`; the callbacks are those of `Measurements`."""

    def __init__(self, figure: FigureConfig, folder: Path, **callbacks: Any) -> None:
        self.figure = figure
        self.measurements = figure.table.measurements(folder, **callbacks)
        self.errors = LatentErrors(figure.table, folder, self.measurements)

    def draw(self) -> Drawing:
        """The figure; what is missing is sampled."""
        if self.figure.kind == "errors":
            return draw_errors(self.figure, self.errors)
        return (draw_steps if self.figure.kind == "steps" else draw_grid)(self.figure, self.measurements)

    def require_sampled(self) -> None:
        """Raise ValueError, with the names of the rows, where the figure cannot be drawn without sampling."""
        missing = [setting.label for setting in figure_settings(self.figure) if not self._is_there(setting)]
        if missing:
            raise ValueError(
                f"{self.figure.name} needs rows that are not sampled yet ({'; '.join(missing)}): leave out --available."
            )

    def images(self) -> int:
        """How many images are sampled where nothing is there."""
        reference = 1 if self.figure.kind == "errors" else 0
        return self.figure.table.images * (len(figure_settings(self.figure)) + reference)

    def _is_there(self, setting: Setting) -> bool:
        if self.figure.kind == "errors":
            return self.errors.find(setting) is not None
        table = self.figure.table
        return self.measurements.find(setting, table.images, table.seed, table.spacing) is not None


def figure_settings(figure: FigureConfig) -> list[Setting]:
    """All that has to be sampled for the figure."""
    return _SETTINGS[figure.kind](figure)
