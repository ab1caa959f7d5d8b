"""A deployed model in one folder: the plan of its technique, and inside it that of its correction.

What is interrupted goes on: the technique from its checkpoint, the correction from its own; a note beside the folder
says that the technique is done.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient import DeepCacheConfig, apply, calibrate, load_plan, remove
from iec.efficient.applying import Technique as Applicable
from iec.efficient.identity import identity_of
from iec.efficient.trajectories import Trajectories
from iec.evaluation.corrections import INNER_FOLDER
from iec.experiments.fits import Fit
from iec.experiments.plans import CalibratedPlan, Calibration, is_of_run, needs_plan
from iec.experiments.prepared import CALIBRATING, FITTING, Progress
from iec.experiments.settings import Technique
from iec.pipelines import CorrectionPlan
from iec.pipelines.correction_plan import KIND
from iec.storage.files import require_writable, write_json
from iec.storage.fingerprint import folder_digest
from iec.storage.plan_files import read_settings


@dataclass(frozen=True)
class Deployment:
    """What is calibrated for runs of `num_steps` steps.

    technique: also the folder of a plan; None: the model as it is. fit: of its correction; None: none.
    """

    technique: Technique | Path | None
    fit: Fit | None
    num_steps: int
    calibration: Calibration
    inputs: Mapping[str, Any]

    def correction_folder(self, output: Path) -> Path:
        """Where the correction goes: beside a technique, into its folder."""
        return output if self.technique is None else output / INNER_FOLDER

    def make(
        self, pipe: DiffusionPipeline, output: Path, on_progress: Progress = lambda stage, done, total: None
    ) -> CorrectionPlan | None:
        """Calibrate it and save it in `output`; the plan of the correction, where there is one.

        Raises ValueError or TypeError, in one sentence and before any work, for what cannot be calibrated.
        """
        if self.fit is None and (self.technique is None or isinstance(self.technique, Path)):
            raise ValueError(
                "Nothing to calibrate: give --quantize, --cachequant, --cache with schedule=dps or with forecast, or "
                "--correction."
            )
        if self.fit is not None:
            self.fit.require_valid(pipe)
        if self.technique is None and output.exists() and read_settings(output).get("kind") != KIND:
            raise ValueError(f"'{output}' holds the plan of a technique: to correct it, give --plan {output} as well.")
        require_writable(output.parent)
        note, checkpoint = output.with_name(f".{output.name}-technique.json"), _checkpoint(output)
        try:
            used = self._technique(pipe, output, note, on_progress)
            if self.fit is None:
                return None
            if used is not None:
                apply(pipe, used)
            if isinstance(self.technique, Path) and self.technique.resolve() != output.resolve():
                load_plan(self.technique).save_pretrained(output)
            plan = self.fit.plan(
                pipe,
                lambda done, total: on_progress(FITTING, done, total),
                checkpoint,
            )
        finally:
            remove(pipe)
        plan.save_pretrained(self.correction_folder(output))
        note.unlink(missing_ok=True)
        return plan

    def _technique(self, pipe: DiffusionPipeline, output: Path, note: Path, on_progress: Progress) -> Applicable | None:
        """What `apply` takes."""
        technique = self.technique
        if isinstance(technique, Path):
            plan = load_plan(technique)
            if not is_of_run(plan, pipe, self.num_steps):
                raise ValueError(
                    f"'{technique}' is the plan of runs of {plan.num_steps} steps of another sampler or number of "
                    f"steps than these {self.num_steps}: give its own."
                )
            return plan
        if technique is None:
            return None
        if self.fit is not None and isinstance(technique, DeepCacheConfig) and not needs_plan(technique):
            technique.full_steps(self.num_steps)
            return technique
        return self._calibrated(pipe, technique, output, note, on_progress)

    def _calibrated(
        self, pipe: DiffusionPipeline, technique: Technique, output: Path, note: Path, on_progress: Progress
    ) -> CalibratedPlan:
        """The plan of the technique, saved in `output`: what the note says is there is not calibrated again."""
        chosen = self.calibration
        trajectories = Trajectories(pipe, self.num_steps, chosen.samples, chosen.batch_size, chosen.seed, self.inputs)
        identity = json.loads(json.dumps(identity_of(pipe, technique, trajectories, self.inputs)))
        if note.exists() and output.exists():
            said = json.loads(note.read_text(encoding="utf-8"))
            if said == {"calibration": identity, "plan": folder_digest(output, without=INNER_FOLDER)}:
                return load_plan(output)
        if self.fit is not None and _checkpoint(output).exists():
            raise ValueError(
                f"'{_checkpoint(output)}' holds the checkpoint of a correction of another technique or calibration: "
                "give another folder, or delete it."
            )
        plan = calibrate(
            pipe,
            technique,
            self.num_steps,
            chosen.samples,
            chosen.batch_size,
            chosen.seed,
            self.inputs,
            on_progress=lambda done, total: on_progress(CALIBRATING, done, total),
            checkpoint=output.with_name(f".{output.name}-calibration"),
        )
        plan.save_pretrained(output)
        if self.fit is not None:
            write_json(note, {"calibration": identity, "plan": folder_digest(output, without=INNER_FOLDER)})
        return plan

    def sampling_command(self, output: Path, model: str | None, cache: str | None, **options: str | None) -> str:
        """The command that samples with what was made. cache: as it was given; options: further ones of the command."""
        parts = ["iec", "sample", *([] if model is None else [model])]
        if isinstance(self.technique, DeepCacheConfig) and not needs_plan(self.technique):
            parts += ["--cache", str(cache)]
        elif self.technique is not None:
            parts += ["--plan", str(output)]
        parts += [] if self.fit is None else ["--correct", str(output)]
        parts += ["--steps", str(self.num_steps)]
        for name, value in options.items():
            parts += [] if value is None else [f"--{name}", value]
        return shlex.join(parts)


def _checkpoint(output: Path) -> Path:
    """Where the fit of the correction keeps what it goes on from."""
    return output.with_name(f".{output.name}-correction")
