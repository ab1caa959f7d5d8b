"""The few numbers of one step by ridge regression: normal equations in float64, summed over trajectories."""

from collections.abc import Sequence

import torch

#: The ridge, relative to the diagonal of the Gram matrix.
RIDGE = 1e-3


class NormalEquations:
    """theta = argmin || y - sum_k theta_k slope f_k - slope b ||^2 + ridge, with one b per channel where asked for.

    num_features: K. num_channels: C, or 0 without constants; theta holds the K numbers and then the C constants.
    """

    def __init__(self, num_features: int, num_channels: int = 0) -> None:
        size = num_features + num_channels
        self.num_features, self.num_channels = num_features, num_channels
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.right = torch.zeros(size, dtype=torch.float64)

    def add(
        self, target: torch.Tensor, slope: torch.Tensor, features: Sequence[torch.Tensor], channel_axis: int = 1
    ) -> None:
        """Count samples [B, ...]: y, what a unit of output moves the state, and the features, of which the last may
        be missing.
        """
        columns = torch.stack([(slope * feature).double().flatten() for feature in features] or [slope.new_empty(0)])
        y, k = target.double(), len(features)
        if k:
            self.gram[:k, :k] += (columns @ columns.T).cpu()
            self.right[:k] += (columns @ y.flatten()).cpu()
        if not self.num_channels:
            return
        first = self.num_features
        slope = slope.double()

        def per_channel(values: torch.Tensor) -> torch.Tensor:
            return values.movedim(channel_axis, 0).flatten(1).sum(1).cpu()

        diagonal = torch.arange(first, first + self.num_channels)
        self.gram[diagonal, diagonal] += per_channel(slope.square())
        self.right[first:] += per_channel(slope * y)
        for i in range(k):
            crossed = per_channel(columns[i].view_as(y) * slope)
            self.gram[i, first:] += crossed
            self.gram[first:, i] += crossed

    def solve(self, ridge: float = RIDGE) -> torch.Tensor:
        """theta, float64 [K + C]; 0 for what no sample showed."""
        diagonal = self.gram.diagonal()
        theta = torch.zeros_like(self.right)
        seen = diagonal > 0
        if seen.any():
            # Divided by its diagonal, the matrix is well scaled, and the ridge is the same for every number.
            scale = diagonal[seen].sqrt()
            matrix = self.gram[seen][:, seen] / scale[:, None] / scale
            matrix += ridge * torch.eye(len(matrix), dtype=torch.float64)
            theta[seen] = torch.linalg.solve(matrix, self.right[seen] / scale) / scale
        return theta
