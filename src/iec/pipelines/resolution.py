"""Whether the latents' dtype can hold a correction at all."""

import torch

from iec.method.config import IECConfig
from iec.method.correction import Correction


def is_rounded_away(result: Correction, dtype: torch.dtype, config: IECConfig) -> bool:
    """Whether every corrected sample was moved by less than half a unit in the last place of `dtype`.

    Never where the correction was itself computed in `dtype`.
    The passes' updates together bound the whole correction: ||x^(K) - x^(0)|| <= sum_k ||x^(k+1) - x^(k)||, here
    relative to the state's norm.
    """
    if dtype == result.state.dtype or not result.changed.any():
        return False
    sizes = torch.stack(result.residuals).nansum(0)
    if config.tolerance_mode == "absolute":
        sizes = sizes / torch.linalg.vector_norm(result.state.flatten(1), dim=1)
    return bool((sizes[result.changed] < torch.finfo(dtype).eps / 2).all())
