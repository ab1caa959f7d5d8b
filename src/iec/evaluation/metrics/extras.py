"""Optional packages: imported when a metric needs them, and named in one sentence where they are missing."""

from importlib import import_module
from typing import Any


def require_extra(module: str, extra: str, purpose: str) -> Any:
    """The imported module. Raises ValueError that says what to install where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs the extra '{extra}', which is not installed: pip install 'iec-diffusion[{extra}]'."
        ) from error
