"""Test-time error correction for efficient diffusion models, without touching their weights.

Everything below is loaded on first use, so that `import iec` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iec.fitting import calibrate_correction
    from iec.method import AdamsConfig, IECConfig, NonFiniteError, Summary, image_generator, initial_noise, sample
    from iec.pipelines import CorrectionPlan, IECUnsupportedError, disable, enable, enabled, summary

_HOME = {
    "AdamsConfig": "iec.method",
    "IECConfig": "iec.method",
    "NonFiniteError": "iec.method",
    "Summary": "iec.method",
    "image_generator": "iec.method",
    "initial_noise": "iec.method",
    "sample": "iec.method",
    "CorrectionPlan": "iec.pipelines",
    "IECUnsupportedError": "iec.pipelines",
    "disable": "iec.pipelines",
    "enable": "iec.pipelines",
    "enabled": "iec.pipelines",
    "summary": "iec.pipelines",
    "calibrate_correction": "iec.fitting",
}

__all__ = [
    "AdamsConfig",
    "CorrectionPlan",
    "IECConfig",
    "IECUnsupportedError",
    "NonFiniteError",
    "Summary",
    "calibrate_correction",
    "disable",
    "enable",
    "enabled",
    "image_generator",
    "initial_noise",
    "sample",
    "summary",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'iec' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
