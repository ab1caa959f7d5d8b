"""Feature caching: DeepCache and its schedules."""

from iec.efficient.caching.config import DeepCacheConfig
from iec.efficient.caching.schedules import centred_schedule, power_schedule, uniform_schedule

__all__ = ["DeepCacheConfig", "centred_schedule", "power_schedule", "uniform_schedule"]
