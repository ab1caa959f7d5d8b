"""The settings of local reconstruction."""

import math
from dataclasses import dataclass
from typing import Any, Literal

Granularity = Literal["layer", "block"]


@dataclass(frozen=True)
class ReconstructionConfig:
    """How the units of a quantized network are trained to give what the float ones give (spec 4.4).

    granularity: a unit is a `layer`, or a `block`: a ResNet, a transformer or attention block, or a layer
    outside these.
    iterations, batch_size: of each unit's training. samples: how many calibration samples it trains on.
    regularization: the weight of AdaRound's rounding regulariser; the released code has none (0).
    weight_lr: of the rounding. activation_lr: of the activation grids' spacing, in units of its mean over the steps.
    zero_point_lr: of all zero points. reentry_lr: of weights and biases at and after a cache's re-entry.

    Raises TypeError or ValueError for an unknown granularity, counts below 1, or rates that are negative or infinite.
    """

    granularity: Granularity = "layer"
    iterations: int = 500
    samples: int = 512
    batch_size: int = 32
    regularization: float = 0.1
    weight_lr: float = 0.1
    activation_lr: float = 1e-4
    zero_point_lr: float = 1e-4
    reentry_lr: float = 1e-6

    def __post_init__(self) -> None:
        if self.granularity not in ("layer", "block"):
            raise ValueError(f"Unknown granularity '{self.granularity}': use layer or block.")
        for name in ("iterations", "samples", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, but is {value!r}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}.")
        for name in ("regularization", "weight_lr", "activation_lr", "zero_point_lr", "reentry_lr"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, but is {value!r}.")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, but is {value}.")

    @classmethod
    def paper(cls, **changes: Any) -> "ReconstructionConfig":
        """The paper's length and its CIFAR-10 learning rates, with the regulariser."""
        rates = {"weight_lr": 1e-4, "activation_lr": 1e-4, "zero_point_lr": 1e-4, "reentry_lr": 1e-6}
        return cls(**{"iterations": 3000, "samples": 1024, "regularization": 0.01, **rates, **changes})

    @classmethod
    def released(cls, **changes: Any) -> "ReconstructionConfig":
        """As the released code: the paper's settings without the regulariser."""
        return cls.paper(**{"regularization": 0.0, **changes})
