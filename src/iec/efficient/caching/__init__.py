"""Feature caching: DeepCache, its schedules, and the plans of those that are found by calibration."""

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.plan import DeepCachePlan
from iec.efficient.caching.schedules import centred_schedule, power_schedule, uniform_schedule

__all__ = ["DeepCacheConfig", "DeepCachePlan", "centred_schedule", "power_schedule", "uniform_schedule"]
