"""The stages of a calibration, each of which needs all trajectories and what the stages before it found."""

from collections.abc import Callable
from pathlib import Path

from iec.efficient.accumulators import Accumulator, Stepwise
from iec.efficient.checkpoint import Checkpoint
from iec.efficient.trajectories import Trajectories

Progress = Callable[[int, int], None]


class Stages:
    """Runs the trajectories once per stage, or what a checkpoint lacks of them, with one count of progress.

    count: how many stages there will be. units: how many units of other work follow them.
    on_progress(done, total): called after every batch, in trajectories of all stages, once where a stage was taken up,
    and after every unit.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        count: int,
        on_progress: Progress = lambda done, total: None,
        checkpoint: Checkpoint | None = None,
        units: int = 0,
    ) -> None:
        self.trajectories, self.on_progress, self.checkpoint, self.finished = trajectories, on_progress, checkpoint, 0
        self.total = count * trajectories.samples + units

    def run(self, name: str, accumulator: Accumulator) -> None:
        """Let `accumulator`, which the caller has connected to the network, gather from all trajectories.

        Raises ValueError where the checkpoint is corrupt.
        """
        begun, progress = self._taken_up(name, accumulator), self.next_stage()

        def batch_ends(done: int, samples: int) -> None:
            if self.checkpoint is not None and (done == samples or self.checkpoint.due()):
                self.checkpoint.save(name, done, accumulator.state())
            progress(done, samples)

        if begun:
            progress(begun, self.trajectories.samples)
        self.trajectories.run(batch_ends, begun)

    def run_together(self, name: str, accumulator: Stepwise) -> None:
        """As `run`, but with all trajectories at once, which wait for one another at the steps that `accumulator`
        gathers; one that was taken up begins anew, and does not wait at steps that are done.

        Progress tells the share of the steps that are done as if it were one of the trajectories.
        """
        samples = self.trajectories.samples
        begun, progress = self._taken_up(name, accumulator), self.next_stage()

        def steps_end(share: float) -> None:
            done = int(share * samples)
            if self.checkpoint is not None and (share == 1 or self.checkpoint.due()):
                self.checkpoint.save(name, done, accumulator.state())
            progress(done, samples)

        def meeting() -> None:
            if (share := accumulator.meet()) < 1:
                steps_end(share)

        if begun:
            progress(begun, samples)
        if begun < samples:
            self.trajectories.run_together(meeting)
            steps_end(1)

    def next_stage(self) -> Progress:
        """The progress of a stage that runs the trajectories by itself, always all of them."""
        before = self.finished * self.trajectories.samples
        self.finished += 1
        return lambda done, samples: self.on_progress(before + done, self.total)

    def units_left(self, left: int) -> None:
        """Tell that `left` units are left to do."""
        self.on_progress(self.total - left, self.total)

    def folder(self, name: str) -> Path | None:
        """Where units keep what is finished; None without a checkpoint."""
        return None if self.checkpoint is None else self.checkpoint.folder(name)

    def _taken_up(self, name: str, accumulator: Accumulator) -> int:
        found = None if self.checkpoint is None else self.checkpoint.load(name)
        if self.checkpoint is None or found is None:
            return 0
        done, state = found
        try:
            accumulator.load(state)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise self.checkpoint.corrupt() from error
        return done
