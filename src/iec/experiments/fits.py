"""How a fitted correction is made, and the folder that keeps its plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffusers import DiffusionPipeline

from iec.experiments.corrections import FittedCorrection
from iec.fitting import FitConfig, calibrate_correction, require_fit
from iec.pipelines import CorrectionPlan
from iec.runtime.sampler import Sampler

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fit:
    """A fitted correction, and everything but the pipeline that its numbers depend on; as of `calibrate_correction`."""

    correction: FittedCorrection
    num_steps: int
    inputs: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 64
    batch_size: int = 16
    seed: int = 0
    reference: DiffusionPipeline | Literal["self"] | None = None

    def require_valid(self, pipe: DiffusionPipeline) -> None:
        """Raise ValueError or TypeError for what cannot be fitted; nothing is sampled."""
        asked = self.correction
        config = FitConfig(
            self.num_steps, self.samples, self.seed, asked.history, asked.bias, asked.bands, asked.relaxation,
            batch_size=self.batch_size,
        )  # fmt: skip
        require_fit(pipe, config, self.reference, self.inputs)

    def plan(
        self,
        pipe: DiffusionPipeline,
        on_progress: Progress = lambda done, total: None,
        checkpoint: Path | None = None,
    ) -> CorrectionPlan:
        """The plan for `pipe` as it is now."""
        asked = self.correction
        return calibrate_correction(
            pipe,
            self.num_steps,
            self.samples,
            self.seed,
            self.reference,
            asked.history,
            asked.bias,
            self.inputs,
            bands=asked.bands,
            relaxation=asked.relaxation,
            batch_size=self.batch_size,
            on_progress=on_progress,
            checkpoint=checkpoint,
        )

    def kept(self, pipe: DiffusionPipeline, folder: Path, on_progress: Progress) -> CorrectionPlan:
        """The plan in `folder`, which is made there unless it is there; interrupted, the next call goes on.

        Raises ValueError where the folder holds the plan of another correction, technique, model or run.
        """
        if folder.exists():
            plan = CorrectionPlan.from_pretrained(folder)
            plan.require_fits(pipe)
            if not self._made(plan, pipe):
                raise ValueError(f"'{folder}' holds the plan of another correction: use another output folder.")
            return plan
        plan = self.plan(pipe, on_progress, folder.with_name(f".{folder.name}-calibration"))
        plan.save_pretrained(folder)
        return plan

    def _made(self, plan: CorrectionPlan, pipe: DiffusionPipeline) -> bool:
        """Whether the plan was made with these settings."""
        asked, report = self.correction, plan.report
        given = {"history": asked.history, "bias": asked.bias, "bands": asked.bands}
        return (
            (plan.relaxations is not None) == (asked.relaxation is not None)
            and report.fixed == {name: value for name, value in given.items() if value is not None}
            and (report.samples, report.seed) == (self.samples, self.seed)
            and plan.sampler == (Sampler.of(pipe.scheduler, self.num_steps) or plan.sampler)
        )
