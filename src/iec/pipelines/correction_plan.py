"""A correction plan: the numbers that were fitted for one model, one technique and one grid of timesteps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from iec.method.calibrated import CalibratedRun, StepCoefficients, require_timesteps
from iec.method.config import IECConfig
from iec.pipelines.deployment import (
    different_setting,
    guidance_of,
    model_identity,
    scheduler_settings,
    technique_of,
)
from iec.runtime import Sampler
from iec.runtime.sampler import sampler_settings
from iec.storage.plan_files import read_plan, write_plan

KIND = "correction"


@dataclass(frozen=True)
class TriedFit:
    """One candidate of a fit, and the error of the final state that it leaves on held-out trajectories.

    history: m. bands: of each difference. bias: whether a constant per channel was fitted. error: the norm of the
    final state's error beside the norm of the reference's, geometric mean over trajectories; spread: its standard
    error.
    """

    history: int
    bands: int
    bias: bool
    error: float
    spread: float


@dataclass(frozen=True)
class FitReport:
    """How a plan was made, and what it gained on held-out trajectories.

    samples, seed, substeps: trajectories, and the reference's steps between two timesteps at most. reference: `full
    precision`, `given` or `self`. plain, corrected: the errors of the final state without and with the plan, as of
    `TriedFit`. solver_plain, solver_corrected: the same of the reference network's own fit; None where the pipeline
    is its own reference. tried: every candidate. fixed: what of history, bias and bands was given, not chosen.
    """

    samples: int
    seed: int
    substeps: int
    reference: str
    plain: float
    corrected: float
    solver_plain: float | None = None
    solver_corrected: float | None = None
    tried: tuple[TriedFit, ...] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)

    @property
    def solver_share(self) -> float:
        """The part of the gain, in squared error, that the same fit has on the reference network."""
        gained = self.plain**2 - self.corrected**2
        if self.solver_plain is None or self.solver_corrected is None:
            return 1.0
        if gained <= 0:
            return 0.0
        return min(1.0, max(0.0, (self.solver_plain**2 - self.solver_corrected**2) / gained))

    def __str__(self) -> str:
        text = f"error of the final state {self.plain:.4f} -> {self.corrected:.4f} on held-out trajectories"
        if self.corrected >= self.plain:
            return f"{text}: it gains nothing there, so leave it out"
        if not self.tried:  # lambdas of IEC, of which the solver's part is not known
            return text
        if self.solver_plain is None:
            return f"{text}; the reference is the same network, so all of it is the solver's"
        return f"{text}; {self.solver_share:.0%} of the gain comes from the solver"


@dataclass(frozen=True)
class CorrectionPlan:
    """What corrects the runs of one pipeline over one grid of timesteps.

    fitted: the outputs' correction; None where relaxations are fitted. relaxations: IEC's lambda of each step (0: the
    step is not corrected). sampler: the scheduler's class and timesteps. model, technique: of the pipeline that the
    plan is for. guidance: the scales of its calls. latent: the shape of one state. report: how it was made.
    scheduler: the scheduler's settings.
    """

    sampler: Sampler
    model: str
    technique: str
    latent: tuple[int, ...]
    report: FitReport
    fitted: StepCoefficients | None = None
    relaxations: tuple[float, ...] | None = None
    guidance: Mapping[str, float] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.sampler.timesteps)

    def begin(self, timesteps: Sequence[float]) -> CalibratedRun:
        """Start a run, as an `OutputCorrector`.

        Raises ValueError where the timesteps are others, or where the plan holds IEC's lambdas.
        """
        if self.fitted is None:
            raise ValueError("This plan holds IEC's lambdas, which only a pipeline can use: iec.enable(pipe, plan).")
        return self.fitted.begin(timesteps)

    @property
    def iec_config(self) -> IECConfig | None:
        """IEC at the steps whose fitted lambda is not 0, without the lambdas; None where outputs are corrected."""
        if self.relaxations is None:
            return None
        chosen = [step for step, relaxation in enumerate(self.relaxations) if relaxation]
        return IECConfig(steps=chosen, tolerance=0.0)

    def require_fits(self, pipe: Any) -> None:
        """Raise ValueError, in one sentence, unless `pipe` is the plan's model with the plan's technique."""
        self.require_technique(pipe)
        found = model_identity(pipe)
        if found != self.model:
            raise ValueError(
                f"This correction plan was calibrated for a model with fingerprint {self.model}, but this one has "
                f"{found}: calibrate this model."
            )

    def require_technique(self, pipe: Any) -> None:
        """Raise ValueError unless `pipe` runs with the plan's technique."""
        technique = technique_of(pipe)
        if technique != self.technique:
            raise ValueError(
                f"This correction plan was calibrated with the technique '{self.technique}', but the pipeline runs "
                f"with '{technique}': apply that technique, or calibrate again."
            )

    def require_timesteps(self, scheduler: Any) -> None:
        """Raise ValueError unless a scheduler whose timesteps are set is the plan's, over the plan's timesteps."""
        found = Sampler.as_set(scheduler)
        if found.scheduler != self.sampler.scheduler:
            raise ValueError(
                f"This correction plan was calibrated with {self.sampler.scheduler}, but the run uses "
                f"{found.scheduler}: use that scheduler, or calibrate again."
            )
        require_timesteps(self.sampler.timesteps, found.timesteps)
        changed = different_setting(self.scheduler, scheduler_settings(scheduler))
        if changed is not None:
            raise ValueError(
                f"This correction plan was calibrated for another {found.scheduler}: the run has {changed}; "
                "calibrate with these settings."
            )

    def require_latent(self, shape: Sequence[int]) -> str | None:
        """A warning, where a state [...] has another size than the plan's.

        Raises ValueError where the plan tells its pixels apart by frequency bands.
        """
        if tuple(shape) == self.latent:
            return None
        sizes = f"calibrated on latents of shape {list(self.latent)}, but this run has {list(shape)}"
        if self.fitted is not None and self.fitted.num_bands > 1:
            raise ValueError(f"This correction plan has frequency bands and was {sizes}: calibrate at this size.")
        return f"The correction plan was {sizes}: it may gain less."

    def other_guidance(self, arguments: Mapping[str, Any]) -> str | None:
        """A warning, where a call has other guidance scales than the plan's."""
        given = guidance_of(arguments)
        for name, scale in self.guidance.items():
            if name in given and given[name] != scale:
                return (
                    f"The correction plan was calibrated with {name} {scale:g}, but this call has {given[name]:g}: "
                    "it may gain less."
                )
        return None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        tensors: dict[str, torch.Tensor] = {}
        settings: dict[str, Any] = {
            "model": self.model,
            "technique": self.technique,
            "sampler": sampler_settings(self.sampler),
            "latent": list(self.latent),
            "guidance": dict(self.guidance),
            "scheduler": dict(self.scheduler),
            "report": asdict(self.report),
        }
        if self.relaxations is not None:
            tensors["relaxations"] = torch.tensor(self.relaxations, dtype=torch.float64)
        if self.fitted is not None:
            tensors["coefficients"] = self.fitted.coefficients
            if self.fitted.constants is not None:
                tensors["constants"] = self.fitted.constants
            settings["channel_axis"] = self.fitted.channel_axis
            settings["grid"] = self.fitted.grid
            settings["full_steps"] = self.fitted.full_steps
        write_plan(folder, KIND, settings, tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CorrectionPlan":
        """The plan in `folder`. Raises ValueError where there is none, or a corrupt one, or one of a newer version."""
        settings, tensors = read_plan(folder, KIND)
        try:
            sampler = Sampler.from_dict(settings["sampler"])
            assert sampler is not None
            report = settings["report"]
            plan = cls(
                sampler,
                str(settings["model"]),
                str(settings["technique"]),
                tuple(map(int, settings["latent"])),
                FitReport(**{**report, "tried": tuple(TriedFit(**one) for one in report["tried"])}),
                guidance={str(name): float(value) for name, value in settings["guidance"].items()},
                scheduler=dict(settings["scheduler"]),
            )
            if "relaxations" in tensors:
                plan = replace(plan, relaxations=tuple(tensors["relaxations"].tolist()))
            if "coefficients" in tensors:
                grid, full_steps = settings["grid"], settings["full_steps"]
                fitted = StepCoefficients(
                    sampler.timesteps,
                    tensors["coefficients"],
                    tensors.get("constants"),
                    int(settings["channel_axis"]),
                    None if grid is None else (int(grid[0]), int(grid[1])),
                    None if full_steps is None else tuple(map(bool, full_steps)),
                )
                plan = replace(plan, fitted=fitted)
            if plan.fitted is None and plan.relaxations is None:
                raise KeyError("coefficients")
            return plan
        except (KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(f"The plan in '{folder}' is incomplete: {error}.") from error
