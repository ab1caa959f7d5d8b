"""The settings of CacheQuant."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.quantization.config import QuantizationConfig, with_reconstruction
from iec.efficient.quantization.layers import Storage
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig

Schedule = Literal["auto", "uniform", "plms", "centred", "dps"]
#: Up to this interval the paper's experiments use the uniform schedule, above it DPS.
LARGEST_UNIFORM_INTERVAL = 10


@dataclass(frozen=True)
class CacheQuantConfig:
    """A feature cache and quantization together, with what they lose corrected per channel (DEC).

    interval, branch, forecast: as of `DeepCacheConfig`; DEC corrects what is forecast. schedule: `uniform`, `plms`,
    `centred`, `dps` (found by dynamic programming), or `auto`: uniform up to an interval of 10, DPS above it. weights,
    activations: bits; weights None caches without quantizing. storage, keep_original, reconstruction, bias_correction:
    as of `QuantizationConfig`; reconstruction takes over from the correction of quantized layers, and bias correction
    leaves to it what it corrects.

    Raises ValueError or TypeError for settings that the cache or the quantization refuses.
    """

    interval: int = 5
    branch: int | None = None
    schedule: Schedule = "auto"
    weights: int | None = 8
    activations: int = 8
    storage: Storage = "simulate"
    keep_original: bool | None = None
    reconstruction: ReconstructionConfig | None = None
    bias_correction: bool = False
    forecast: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"Unknown schedule '{self.schedule}': use {', '.join(get_args(Schedule))}.")
        if self.weights is None and self.reconstruction is not None:
            raise ValueError("There is nothing to reconstruct without quantization: give the bits of the weights.")
        if self.weights is None and self.bias_correction:
            raise ValueError("Without quantization no bias is to be corrected: give the bits of the weights.")
        # Made once here so that bad settings are refused at once.
        self.cache, self.quantization  # noqa: B018

    @property
    def cache(self) -> DeepCacheConfig:
        """The cache's settings, before its full steps are known."""
        if self.schedule != "auto":
            return DeepCacheConfig(self.interval, self.branch, self.schedule, forecast=self.forecast)
        uniform = DeepCacheConfig(self.interval, self.branch, forecast=self.forecast)
        return replace(uniform, schedule="dps") if self.interval > LARGEST_UNIFORM_INTERVAL else uniform

    @property
    def quantization(self) -> QuantizationConfig | None:
        """The quantization's settings, or None."""
        if self.weights is None:
            return None
        return QuantizationConfig(
            self.weights,
            self.activations,
            storage=self.storage,
            keep_original=self.keep_original,
            reconstruction=self.reconstruction,
            bias_correction=self.bias_correction,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "CacheQuantConfig":
        """What `dataclasses.asdict` made of one."""
        return cls(**with_reconstruction(settings))
