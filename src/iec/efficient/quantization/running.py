"""A quantized pipeline's part in its runs."""

from iec.efficient.quantization.activations import require_steps
from iec.runtime import Part, Participant, Run


class LengthCheck(Participant):
    """Refuses a run of another length than `num_steps` before its first evaluation."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def join(self, run: Run) -> Part:
        return _LengthPart(run, self.num_steps)


class _LengthPart(Part):
    def __init__(self, run: Run, num_steps: int) -> None:
        self.run, self.num_steps = run, num_steps

    def steps_known(self) -> None:
        require_steps(self.num_steps, self.run.clock.num_steps)
