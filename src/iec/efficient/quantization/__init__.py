"""Timestep-wise post-training quantization in simulated arithmetic."""

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.plan import QuantizationPlan

__all__ = ["QuantizationConfig", "QuantizationPlan"]
