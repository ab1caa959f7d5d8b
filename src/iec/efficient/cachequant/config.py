"""The settings of CacheQuant."""

from dataclasses import dataclass
from typing import Literal

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.layers import Storage

Schedule = Literal["auto", "uniform", "dps"]
#: Up to this interval the paper's experiments use the uniform schedule, above it DPS.
LARGEST_UNIFORM_INTERVAL = 10


@dataclass(frozen=True)
class CacheQuantConfig:
    """A feature cache and quantization together, with what they lose corrected per channel (DEC).

    interval, branch: as of `DeepCacheConfig`. schedule: `uniform`, `dps` (found by dynamic programming), or `auto`:
    uniform up to an interval of 10, DPS above it. weights, activations: bits; weights None caches without quantizing.
    storage, keep_original: as of `QuantizationConfig`.

    Raises ValueError or TypeError for settings that the cache or the quantization refuses.
    """

    interval: int = 5
    branch: int | None = None
    schedule: Schedule = "auto"
    weights: int | None = 8
    activations: int = 8
    storage: Storage = "simulate"
    keep_original: bool | None = None

    def __post_init__(self) -> None:
        DeepCacheConfig(self.interval, self.branch)
        if self.schedule not in ("auto", "uniform", "dps"):
            raise ValueError(f"Unknown schedule '{self.schedule}': use auto, uniform or dps.")
        # Made once here so that bad bits are refused at once.
        self.quantization  # noqa: B018

    @property
    def searches(self) -> bool:
        """Whether the full steps are found by DPS."""
        return self.schedule == "dps" or (self.schedule == "auto" and self.interval > LARGEST_UNIFORM_INTERVAL)

    @property
    def quantization(self) -> QuantizationConfig | None:
        """The quantization's settings, or None."""
        if self.weights is None:
            return None
        return QuantizationConfig(
            self.weights, self.activations, storage=self.storage, keep_original=self.keep_original
        )
