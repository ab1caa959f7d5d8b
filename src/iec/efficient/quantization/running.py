"""A calibrated pipeline's part in its runs."""

from typing import Any

from iec.efficient.quantization.activations import require_steps
from iec.runtime import Part, Participant, Run
from iec.runtime.sampler import Sampler


class RunCheck(Participant):
    """Refuses a run of another length or with another sampler before its first evaluation, and to be saved.

    Saving the pipeline would lose its plan.
    """

    def __init__(self, num_steps: int, sampler: Sampler | None) -> None:
        self.num_steps, self.sampler = num_steps, sampler

    def before_saving(self) -> None:
        refuse_saving()

    def join(self, run: Run) -> Part:
        return _CheckedPart(run, self)


class _CheckedPart(Part):
    def __init__(self, run: Run, check: RunCheck) -> None:
        self.run, self.check = run, check

    def steps_known(self) -> None:
        require_steps(self.check.num_steps, self.run.clock.num_steps)
        if self.check.sampler is not None:
            self.check.sampler.require(self.run.scheduler)


def refuse_saving(*args: Any, **kwargs: Any) -> None:
    """Raise ValueError: what a plan is applied to has weights of another form, or would be saved without its plan."""
    raise ValueError("A model is not saved with a plan applied: save the plan with plan.save_pretrained, or remove it.")
