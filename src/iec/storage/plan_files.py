"""A plan's two files, and the model that it belongs to."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from iec.storage.files import write_folder_atomically, write_json
from iec.storage.fingerprint import fingerprint

SCHEMA = 1
_SETTINGS, _TENSORS = "plan.json", "plan.safetensors"


def write_plan(
    folder: str | Path,
    kind: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a plan into `folder`, all of it or nothing; `beside` adds files of its own."""
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(stored, temporary / _TENSORS)
        write_json(temporary / _SETTINGS, {"schema": SCHEMA, "kind": kind, **settings})
        beside(temporary)

    write_folder_atomically(folder, write)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The settings of the plan in `folder`, its `kind` among them.

    Raises ValueError where the files are missing or corrupt, or of another schema.
    """
    folder = Path(folder)
    for name in (_SETTINGS, _TENSORS):
        if not (folder / name).is_file():
            raise ValueError(f"'{folder}' holds no plan: there is no {name} in it.")
    try:
        settings: dict[str, Any] = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        schema = settings["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{folder / _SETTINGS}' is corrupt: calibrate again.") from error
    if schema != SCHEMA:
        raise ValueError(
            f"The plan in '{folder}' has schema {schema}, but this version of iec reads schema {SCHEMA}: "
            "use the version that wrote it, or calibrate again."
        )
    return settings


def read_plan(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and tensors of a plan of that kind. Raises ValueError where there is none in `folder`."""
    settings = read_settings(folder)
    if settings.get("kind") != kind:
        raise ValueError(f"'{folder}' holds a plan of kind '{settings.get('kind')}', not '{kind}'.")
    path = Path(folder) / _TENSORS
    try:
        return settings, load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is corrupt: calibrate again.") from error


def require_model(network: nn.Module, expected: str) -> None:
    """Raise ValueError unless `network` has the weights with the fingerprint `expected`."""
    found = fingerprint(network)
    if found != expected:
        raise ValueError(
            f"This plan was calibrated for a model with fingerprint {expected}, but this one has {found}: "
            "calibrate this model."
        )
