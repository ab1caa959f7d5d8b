"""Efficient models: feature caching, quantization, and both together, on any pipeline or denoiser."""

from iec.efficient.applying import applied, apply, load_plan, model_bytes, remove
from iec.efficient.cachequant import CacheQuantConfig, CacheQuantPlan
from iec.efficient.caching import DeepCacheConfig, DeepCachePlan
from iec.efficient.calibrating import calibrate
from iec.efficient.quantization import QuantizationConfig, QuantizationPlan, ReconstructionConfig

__all__ = [
    "CacheQuantConfig",
    "CacheQuantPlan",
    "DeepCacheConfig",
    "DeepCachePlan",
    "QuantizationConfig",
    "QuantizationPlan",
    "ReconstructionConfig",
    "applied",
    "apply",
    "calibrate",
    "load_plan",
    "model_bytes",
    "remove",
]
