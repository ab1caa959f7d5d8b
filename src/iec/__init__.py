"""Test-time error correction for efficient diffusion models, without touching their weights.

Everything below is loaded on first use, so that `import iec` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iec.method import IECConfig, NonFiniteError, Summary, image_generator, initial_noise, sample
    from iec.pipelines import IECUnsupportedError, disable, enable, enabled, summary

_HOME = {
    "IECConfig": "iec.method",
    "NonFiniteError": "iec.method",
    "Summary": "iec.method",
    "image_generator": "iec.method",
    "initial_noise": "iec.method",
    "sample": "iec.method",
    "IECUnsupportedError": "iec.pipelines",
    "disable": "iec.pipelines",
    "enable": "iec.pipelines",
    "enabled": "iec.pipelines",
    "summary": "iec.pipelines",
}

__all__ = [
    "IECConfig",
    "IECUnsupportedError",
    "NonFiniteError",
    "Summary",
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
