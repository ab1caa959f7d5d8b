"""Progress over rows that are sampled, found, or calibrated first."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iec.cli.common import progress

if TYPE_CHECKING:
    from iec.experiments.settings import Setting


def watched(total: int, work: Callable[[dict[str, Any]], Any]) -> Any:
    """`work` under a progress bar of `total` images, which the callbacks that it is given move (`Measurements`)."""
    with progress("images") as bar:
        task = bar.add_task("sampling", total=total)

        def on_row(setting: "Setting", seed: int, done: bool) -> None:
            bar.update(task, description=f"{setting.label:<44}")

        def on_calibration(setting: "Setting", done: int, total: int) -> None:
            bar.update(task, description=f"calibrating {setting.system} {done}/{total}".ljust(44))

        return work(
            {
                "on_row": on_row,
                "on_images": lambda images: bar.advance(task, images),
                "on_calibration": on_calibration,
            }
        )
