"""Timestep-wise post-training quantization in simulated arithmetic."""
