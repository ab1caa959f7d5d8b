"""What has to be calibrated before images are sampled: the plan of the technique, then that of its correction."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient import DeepCacheConfig, apply, calibrate, load_plan, remove
from iec.evaluation import corrections
from iec.experiments.corrections import Correction, FittedCorrection
from iec.experiments.fits import Fit
from iec.experiments.plans import is_of_run, needs_plan, technique_settings
from iec.experiments.settings import Technique
from iec.pipelines import CorrectionPlan
from iec.storage.files import require_writable
from iec.storage.locking import exclusive

#: Told what is being made, how much of it is done, and how much there is: of a technique's plan in trajectories, of a
#: correction's in evaluations.
Progress = Callable[[str, int, int], None]
CALIBRATING, FITTING = "calibrating (trajectories)", "fitting the correction (evaluations)"


@dataclass(frozen=True)
class PlanFolders:
    """Where the plans of one run are kept; lock: a file that lets one of several processes make them."""

    technique: Path
    correction: Path
    lock: Path

    @classmethod
    def inside(cls, output: Path) -> "PlanFolders":
        """Those in an output folder."""
        return cls(output / "plan", output / "correction", output / ".plan.lock")


def prepared(
    pipe: DiffusionPipeline,
    technique: Technique | Path | None,
    correction: Correction | CorrectionPlan | None,
    num_steps: int,
    folders: PlanFolders,
    inputs: Mapping[str, Any],
    on_progress: Progress = lambda stage, done, total: None,
    samples: int = 64,
    batch_size: int = 16,
) -> tuple[DeepCacheConfig | Path | None, corrections.Correction | None]:
    """The technique and the correction as `sample_to_folder` takes them; plans that are not there are made.

    technique: also the folder of a plan. Of several processes one calibrates, and the others wait for its plans.
    Raises ValueError or TypeError before any work for what cannot be fitted.
    """
    fit = None
    if isinstance(correction, FittedCorrection):
        fit = Fit(correction, num_steps, inputs, samples, batch_size)
        fit.require_valid(pipe)
    else:
        corrections.require_correction(pipe, correction, num_steps, inputs)
    calibrates = technique is not None and not isinstance(technique, Path) and needs_plan(technique)
    if calibrates or fit is not None:
        require_writable(folders.lock.parent)
    with exclusive(folders.lock) if calibrates or fit is not None else nullcontext():
        if technique is None or isinstance(technique, Path):
            used: DeepCacheConfig | Path | None = technique
        else:
            used = _planned(
                pipe,
                technique,
                num_steps,
                folders.technique,
                inputs,
                lambda done, total: on_progress(CALIBRATING, done, total),
                samples,
                batch_size,
            )
        if fit is None:
            assert not isinstance(correction, FittedCorrection)
            return used, correction
        try:
            if used is not None:
                apply(pipe, used)
            return used, fit.kept(pipe, folders.correction, lambda done, total: on_progress(FITTING, done, total))
        finally:
            remove(pipe)


def _planned(
    pipe: DiffusionPipeline,
    technique: Technique | None,
    num_steps: int,
    folder: Path,
    inputs: Mapping[str, Any],
    on_progress: Callable[[int, int], None],
    samples: int = 64,
    batch_size: int = 16,
) -> DeepCacheConfig | Path | None:
    """What samples with `technique`: itself, or `folder`, with its plan, which is made there unless it is there.

    samples, batch_size: of a calibration. Raises ValueError where the folder's plan has other settings or steps.
    """
    if technique is None or (isinstance(technique, DeepCacheConfig) and not needs_plan(technique)):
        return technique
    if folder.exists():
        found = load_plan(folder)
        if technique_settings(found.config) != technique_settings(technique) or not is_of_run(found, pipe, num_steps):
            raise ValueError(f"'{folder}' holds the plan of another technique: use another output folder.")
    else:
        checkpoint = folder.with_name(f".{folder.name}-calibration")
        plan = calibrate(
            pipe, technique, num_steps, samples, batch_size, 0, inputs, on_progress=on_progress, checkpoint=checkpoint
        )
        plan.save_pretrained(folder)
    return folder
