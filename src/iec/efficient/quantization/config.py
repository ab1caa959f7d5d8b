"""The settings of post-training quantization."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iec.efficient.quantization.layers import Storage
from iec.efficient.quantization.quantizer import require_bits
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig


@dataclass(frozen=True)
class QuantizationConfig:
    """Bits of weights and activations; the arithmetic is simulated.

    weights, activations: bits of all layers but the first and the last. first_last: bits of both in these two.
    attention: whether queries, keys and values (in `activations` bits) and the softmax output (in `softmax` bits) are
        quantized too. steps_per_group: how many sampling steps share the grids of an activation.
    storage: `simulate` keeps the float weights, `packed` a byte or half a byte per weight, dequantized on use.
    keep_original: in `packed`, whether the float layers are kept too. None: no, since `remove` can read them again from
        the folder that the model was loaded from; `apply` refuses a model for which it could not. False: not even then.
    bias_correction: whether what rounding the weights adds to a layer's outputs on average is taken off at every step,
        which costs no evaluation; reconstruction, which trains the rounding itself, is not combined with it.
    reconstruction: how the rounding of weights is trained; None: every weight is rounded to the nearest.

    Raises ValueError or TypeError for bits outside 2..8, groups below 1, an unknown storage, or a bias correction with
    a reconstruction.
    """

    weights: int = 8
    activations: int = 8
    first_last: int = 8
    softmax: int = 8
    attention: bool = True
    steps_per_group: int = 1
    storage: Storage = "simulate"
    keep_original: bool | None = None
    reconstruction: ReconstructionConfig | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "activations", "first_last", "softmax"):
            require_bits(getattr(self, name), name)
        if isinstance(self.steps_per_group, bool) or not isinstance(self.steps_per_group, int):
            raise TypeError(f"steps_per_group must be an integer, but is {self.steps_per_group!r}.")
        if self.steps_per_group < 1:
            raise ValueError(f"steps_per_group must be at least 1, but is {self.steps_per_group}.")
        if self.storage not in ("simulate", "packed"):
            raise ValueError(f"Unknown storage '{self.storage}': use simulate or packed.")
        require_reconstruction(self.reconstruction)
        if not isinstance(self.bias_correction, bool):
            raise TypeError(f"bias_correction must be True or False, but is {self.bias_correction!r}.")
        if self.bias_correction and self.reconstruction is not None:
            raise ValueError("Reconstruction trains the rounding itself: leave out the bias correction.")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "QuantizationConfig":
        """What `dataclasses.asdict` made of one."""
        return cls(**with_reconstruction(settings))


def require_reconstruction(value: Any) -> None:
    """Raise TypeError unless `value` is a `ReconstructionConfig` or None."""
    if value is not None and not isinstance(value, ReconstructionConfig):
        raise TypeError(f"reconstruction must be a ReconstructionConfig or None, but is a {type(value).__name__}.")


def with_reconstruction(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields, of which `asdict` made plain ones, with the reconstruction's settings as such."""
    plain = settings.get("reconstruction")
    return {**settings, "reconstruction": None if plain is None else ReconstructionConfig(**plain)}
