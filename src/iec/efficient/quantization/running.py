"""A calibrated pipeline's part in its runs."""

from typing import Any

from iec.efficient.quantization.activations import require_steps
from iec.runtime import Part, Participant, Run


class Planned(Participant):
    """Refuses that the pipeline is saved, since that would lose its plan."""

    def before_saving(self) -> None:
        refuse_saving()


class LengthCheck(Planned):
    """Refuses a run of another length than `num_steps` before its first evaluation as well."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def join(self, run: Run) -> Part:
        return _LengthPart(run, self.num_steps)


class _LengthPart(Part):
    def __init__(self, run: Run, num_steps: int) -> None:
        self.run, self.num_steps = run, num_steps

    def steps_known(self) -> None:
        require_steps(self.num_steps, self.run.clock.num_steps)


def refuse_saving(*args: Any, **kwargs: Any) -> None:
    """Raise ValueError: what a plan is applied to has weights of another form, or would be saved without its plan."""
    raise ValueError("A model is not saved with a plan applied: save the plan with plan.save_pretrained, or remove it.")
