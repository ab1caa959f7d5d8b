"""Least squares per channel, streamed: y ~ a x + b, for all channels at once (the fit behind DEC)."""

from collections.abc import Sequence

import torch

from iec.efficient.accumulators import State, joined, part_of


class ChannelRegression:
    """Moments of pairs (x, y), both [B, C, ...], over everything but the channel; float64, merged batch by batch.

    All moments are divided by the same count, so that biased and unbiased ones are never mixed (D10).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean_x = self.mean_y = self.variance_x = self.covariance = torch.zeros((), dtype=torch.float64)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Count one batch. Raises ValueError where the shapes differ."""
        if x.shape != y.shape or x.dim() < 2:
            raise ValueError(
                f"The pairs must have one shape [B, C, ...], but have {list(x.shape)} and {list(y.shape)}."
            )
        rows_x, rows_y = (t.detach().transpose(0, 1).flatten(1).double() for t in (x, y))
        count = rows_x.shape[1]
        if not count:
            return
        mean_x, mean_y = rows_x.mean(1), rows_y.mean(1)
        rows_x, rows_y = rows_x - mean_x.unsqueeze(1), rows_y - mean_y.unsqueeze(1)
        share = count / (self.count + count)
        shift_x, shift_y = mean_x.cpu() - self.mean_x, mean_y.cpu() - self.mean_y
        # Deviations from the two means, and of the two means from one another (Chan et al.): no large squares cancel.
        between = share * (1 - share)
        self.variance_x = _merged(self.variance_x, (rows_x * rows_x).mean(1).cpu(), share) + between * shift_x**2
        self.covariance = _merged(self.covariance, (rows_x * rows_y).mean(1).cpu(), share) + between * shift_x * shift_y
        self.mean_x, self.mean_y = self.mean_x + share * shift_x, self.mean_y + share * shift_y
        self.count += count

    def state(self) -> State:
        """All that was added."""
        moments = torch.stack([self.mean_x, self.mean_y, self.variance_x, self.covariance])
        return {"count": torch.tensor(self.count), "moments": moments}

    def load(self, state: State) -> None:
        """Become what gave `state`."""
        self.count = int(state["count"])
        self.mean_x, self.mean_y, self.variance_x, self.covariance = state["moments"].unbind()

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b, float32 [C]; a channel whose x never varies is only shifted (a = 1).

        Raises ValueError where nothing was added.
        """
        if not self.count:
            raise ValueError("There is no data to fit.")
        # Below the rounding of float32 inputs a variance is noise.
        constant = self.variance_x <= (torch.finfo(torch.float32).eps * self.mean_x) ** 2
        a = torch.where(constant, 1.0, self.covariance / self.variance_x.where(~constant, 1.0))
        return a.float(), (self.mean_y - a * self.mean_x).float()


def _merged(old: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
    return old + share * (new - old)


def regressions_state(fits: Sequence[ChannelRegression]) -> State:
    """The state of several regressions, of as many channels each where they were used, as one."""
    return joined({str(i): fit.state() for i, fit in enumerate(fits)})


def load_regressions(fits: Sequence[ChannelRegression], state: State) -> None:
    """Give every one of `fits` its own state back."""
    for i, fit in enumerate(fits):
        fit.load(part_of(state, str(i)))
