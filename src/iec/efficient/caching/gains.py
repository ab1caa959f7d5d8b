"""The least squares behind a forecast's gains, streamed."""

from collections.abc import Sequence

import torch

from iec.efficient.caching.forecast import TERMS

#: Added to the Gram matrix's diagonal, relative to it.
RIDGE = 1e-3
#: Relative to the largest, an eigenvalue below the square of float32's rounding is noise.
NOISE = 1e-12


class GainFit:
    """target ~ g_1 difference_1 + g_2 difference_2, over every element alike; sums in float64."""

    def __init__(self) -> None:
        self.gram = torch.zeros(TERMS, TERMS, dtype=torch.float64)
        self.product = torch.zeros(TERMS, dtype=torch.float64)

    def add(self, differences: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        """Count one batch: up to two differences and the target, all of one shape."""
        rows = torch.stack([difference.detach().double().flatten() for difference in differences])
        count = len(rows)
        self.gram[:count, :count] += (rows @ rows.T).cpu()
        self.product[:count] += (rows @ target.detach().double().flatten()).cpu()

    def solve(self) -> torch.Tensor:
        """g, float64 [2]; 0 for a difference that was not given or never varies.

        Raises ValueError where a feature was not finite.
        """
        if not (self.gram.isfinite().all() and self.product.isfinite().all()):
            raise ValueError("A feature is not finite, so it cannot be forecast: calibrate in a wider dtype.")
        ridged = self.gram + RIDGE * self.gram.diag().diag()
        gains: torch.Tensor = torch.linalg.pinv(ridged, rtol=NOISE, hermitian=True) @ self.product
        return gains
