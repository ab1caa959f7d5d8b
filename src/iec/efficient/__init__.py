"""Efficient models: feature caching and quantization on any pipeline or denoiser."""

from iec.efficient.applying import applied, apply, remove
from iec.efficient.caching import DeepCacheConfig
from iec.efficient.calibrating import calibrate
from iec.efficient.quantization import QuantizationConfig, QuantizationPlan

__all__ = ["DeepCacheConfig", "QuantizationConfig", "QuantizationPlan", "applied", "apply", "calibrate", "remove"]
