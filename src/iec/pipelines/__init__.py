"""Correction on any diffusers pipeline: the loop body between two scheduler steps is recorded and replayed."""

from iec.pipelines.enabling import disable, enable, enabled, summary
from iec.pipelines.errors import IECUnsupportedError

__all__ = ["IECUnsupportedError", "disable", "enable", "enabled", "summary"]
