"""What `--correct` may say besides the little language: the folder of a correction's plan."""

from pathlib import Path

from iec.evaluation.corrections import INNER_FOLDER
from iec.experiments.corrections import Correction
from iec.experiments.language import CORRECTIONS, parse_correction
from iec.pipelines import CorrectionPlan
from iec.pipelines.correction_plan import KIND
from iec.storage.plan_files import read_settings


def parse_correction_or_folder(text: str | None) -> Correction | CorrectionPlan | None:
    """As of `parse_correction`, or the plan in a folder. Raises ValueError for what is neither."""
    if text is None or text.split(",")[0] in CORRECTIONS:
        return parse_correction(text)
    folder = Path(text)
    if folder.is_dir():
        return CorrectionPlan.from_pretrained(correction_folder(folder))
    if "=" in text:
        return parse_correction(text)
    raise ValueError(
        f"'{text}' is neither a correction nor a folder with the plan of one: use {', '.join(CORRECTIONS)}, settings "
        "such as relaxation=0.5,steps=edges:1/10, or a folder that iec calibrate --correction made."
    )


def correction_folder(folder: Path) -> Path:
    """`folder`, or the folder in it that holds the correction of a deployed model.

    Raises ValueError where neither holds a correction's plan.
    """
    if (folder / INNER_FOLDER).is_dir():
        return folder / INNER_FOLDER
    if read_settings(folder).get("kind") != KIND:
        raise ValueError(
            f"'{folder}' holds the plan of a technique without a correction: make one with iec calibrate --plan "
            f"{folder} --correction."
        )
    return folder
