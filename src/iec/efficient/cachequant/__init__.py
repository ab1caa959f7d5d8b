"""CacheQuant: which steps to compute in full (DPS), and the correction of what caching and quantization lose (DEC)."""

from iec.efficient.cachequant.config import CacheQuantConfig
from iec.efficient.cachequant.plan import CacheQuantPlan

__all__ = ["CacheQuantConfig", "CacheQuantPlan"]
