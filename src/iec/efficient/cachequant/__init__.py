"""CacheQuant: which steps to compute in full (DPS), and the correction of what caching and quantization lose (DEC)."""
