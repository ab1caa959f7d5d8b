"""Timestep-wise post-training quantization in simulated arithmetic."""

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig

__all__ = ["QuantizationConfig", "QuantizationPlan", "ReconstructionConfig"]
