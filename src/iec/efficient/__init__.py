"""Efficient models: feature caching on any pipeline or denoiser."""

from iec.efficient.applying import applied, apply, remove
from iec.efficient.caching import DeepCacheConfig

__all__ = ["DeepCacheConfig", "applied", "apply", "remove"]
