"""What one run did: per step, whether it was corrected, by how much, and at what cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from iec.method.output_corrector import OutputChange, Rule


@dataclass
class StepRecord:
    """One step. Evaluations are guided model outputs per image; residuals are per pass and sample.

    rule, change: what corrected the output before the step, and how large that was beside the output, per sample [B].
    """

    step: int
    timestep: float | int | None
    selected: bool
    full: int = 0
    cached: int = 0
    corrected: bool = False
    seconds: float = 0.0
    residuals: tuple[torch.Tensor, ...] = ()
    fell_back: torch.Tensor | None = None
    rule: Rule = "none"
    change: torch.Tensor | None = None

    def add_change(self, change: OutputChange, output: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """`output` [B, ...] with the change (in the units of the output, times `scale`), which is noted."""
        self.rule = change.rule
        if change.term is None:
            return output
        term = change.term if scale == 1.0 else scale * change.term
        self.change = _norms(term) / _norms(output).clamp_min(1e-12)
        return output + term

    def count(self, full: bool) -> None:
        """Note one evaluation."""
        self.full, self.cached = self.full + full, self.cached + (not full)

    @property
    def passes(self) -> int:
        """The correction passes that were evaluated."""
        return len(self.residuals)

    @property
    def samples_fell_back(self) -> list[int]:
        """The samples whose correction was not finite and was dropped."""
        return [] if self.fell_back is None else self.fell_back.nonzero().flatten().tolist()

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values; a frozen sample's residual is null."""
        residuals = [[value if math.isfinite(value) else None for value in sizes.tolist()] for sizes in self.residuals]
        return {
            "step": self.step,
            "timestep": self.timestep,
            "selected": self.selected,
            "corrected": self.corrected,
            "full_evaluations": self.full,
            "cached_evaluations": self.cached,
            "seconds": round(self.seconds, 6),
            "residuals": residuals,
            "fell_back": self.samples_fell_back,
            "rule": self.rule,
            "change": None if self.change is None else self.change.tolist(),
        }


def _norms(x: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms


@dataclass
class Summary:
    """One run of `num_steps` steps over a batch of `num_images` images. Prints as a table."""

    num_steps: int
    num_images: int
    steps: list[StepRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def selected(self) -> list[int]:
        """The steps that the selector chose."""
        return [record.step for record in self.steps if record.selected]

    @property
    def corrected(self) -> list[int]:
        """The steps that were corrected."""
        return [record.step for record in self.steps if record.corrected]

    @property
    def skipped(self) -> list[int]:
        """The selected steps that were not corrected, because a cache served them."""
        return [record.step for record in self.steps if record.selected and not record.corrected]

    @property
    def full_evaluations(self) -> int:
        """Full evaluations per image."""
        return sum(record.full for record in self.steps)

    @property
    def cached_evaluations(self) -> int:
        """Evaluations per image that a cache shortened."""
        return sum(record.cached for record in self.steps)

    @property
    def seconds(self) -> float:
        """Wall time of the steps."""
        return sum(record.seconds for record in self.steps)

    @property
    def all_warnings(self) -> list[str]:
        """What a user should know about this run, one sentence each."""
        lines = [
            f"At step {record.step}, the correction of sample {', '.join(map(str, record.samples_fell_back))} was not "
            "finite and was dropped; the uncorrected state was kept."
            for record in self.steps
            if record.samples_fell_back
        ]
        return [*self.warnings, *lines]

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {
            "num_steps": self.num_steps,
            "num_images": self.num_images,
            "selected": self.selected,
            "corrected": self.corrected,
            "skipped": self.skipped,
            "full_evaluations": self.full_evaluations,
            "cached_evaluations": self.cached_evaluations,
            "seconds": round(self.seconds, 6),
            "warnings": self.all_warnings,
            "steps": [record.to_dict() for record in self.steps],
        }

    def by_rule(self, rule: Rule) -> list[int]:
        """The steps whose output that rule corrected before the step."""
        return [record.step for record in self.steps if record.rule == rule]

    def __str__(self) -> str:
        outputs = ", ".join(f"{len(steps)} by {rule}" for rule in _RULES if (steps := self.by_rule(rule)))
        corrected = f"{len(self.corrected)} of {len(self.selected)} selected steps corrected"
        title = (
            f"{self.num_steps} steps, {self.num_images} images: {self.full_evaluations} full and "
            f"{self.cached_evaluations} cached evaluations per image, {self.seconds:.2f} s; "
            f"{f'outputs of {outputs} corrected' if outputs else corrected}"
        )
        last = "added to the output" if outputs else "residuals"
        header = f"{'step':>4}  {'timestep':>8}  {'corrected':<10}  {'full':>4}  {'cached':>6}  {'ms':>8}  {last}"
        return "\n".join([title, header, *map(_row, self.steps), *(f"! {line}" for line in self.all_warnings)])


def step_count_warning(summary: Summary, completed: bool) -> Iterator[str]:
    """A sentence where a run that was completed took another number of steps than it had timesteps."""
    made, planned = len(summary.steps), summary.num_steps
    if made != planned and completed:
        yield f"The pipeline took {made} steps where its scheduler had {planned} timesteps."


_RULES: tuple[Rule, ...] = ("plan", "adams")


def _row(record: StepRecord) -> str:
    state = "yes" if record.corrected else "cached" if record.selected else "no"
    if record.rule != "none":
        state = record.rule if not record.corrected else f"{record.rule}, IEC"
    timestep = "" if record.timestep is None else f"{record.timestep:g}"
    sizes = (() if record.change is None else (record.change,)) + record.residuals
    means = "  ".join(f"{torch.nanmean(of_samples).item():.2e}" for of_samples in sizes)
    line = (
        f"{record.step:>4}  {timestep:>8}  {state:<10}  {record.full:>4}  {record.cached:>6}  "
        f"{record.seconds * 1e3:>8.2f}  {means}"
    )
    return line.rstrip()
