"""Fingerprints of weights and of files, so that a record says what it was made with."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """16 hex digits over the names, shapes, dtypes and bytes of all weights."""
    return tensors_fingerprint(network.state_dict())


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits over the names, shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def texts_digest(texts: Iterable[str]) -> str:
    """16 hex digits over texts in their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def folder_digest(folder: str | Path, pattern: str = "*", without: str | None = None) -> str:
    """16 hex digits over the names and bytes of all files in `folder` of that pattern, whatever order they are in.

    without: a folder in it that does not count.
    """
    digest = hashlib.sha256()
    left_out = None if without is None else Path(folder) / without
    for path in sorted(path for path in Path(folder).rglob(pattern) if path.is_file()):
        if left_out in path.parents:
            continue
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
