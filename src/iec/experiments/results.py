"""Sampled rows in a folder, keyed by their settings, so that none is ever computed twice."""

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from iec.storage.files import require_writable, write_atomically

_RECORD = "record"


@dataclass(frozen=True)
class StoredRow:
    """The images of one row, uint8 [n, 3, H, W], and what is recorded of them, as JSON values."""

    images: torch.Tensor
    record: dict[str, Any]

    @property
    def device(self) -> str:
        """The kind of device that it was sampled on."""
        return str(self.record.get("device", "cpu"))


def machine(rows: Iterable[StoredRow]) -> str:
    """What sampled the rows, for a report."""
    workers = {
        f"{row.record['threads']} workers of one thread each" if row.device == "cpu" else row.device for row in rows
    }
    return f"{platform.machine()}, {' or '.join(sorted(workers))}"


class TensorFolder:
    """Tensors by key, each with a record of JSON values; `name` says what they are.

    Raises ValueError where the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        require_writable(folder)
        self.folder, self.name = folder, name

    def find(self, key: str) -> tuple[torch.Tensor, dict[str, Any]] | None:
        """The tensor of that key with its record, or None. Raises ValueError where its file is corrupt."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(self.name), json.loads(file.metadata()[_RECORD])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is corrupt: delete it, and the row is sampled again.") from error

    def add(self, key: str, tensor: torch.Tensor, record: dict[str, Any]) -> None:
        """Write the tensor, all of it or nothing."""
        metadata = {_RECORD: json.dumps(record)}
        write_atomically(
            self._path(key), lambda path: save_file({self.name: tensor.contiguous()}, path, metadata=metadata)
        )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


class ResultFolder:
    """Rows by key. Raises ValueError where the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._images = TensorFolder(folder, "images")

    def find(self, key: str) -> StoredRow | None:
        """The row of that key, or None. Raises ValueError where its file is corrupt."""
        found = self._images.find(key)
        return None if found is None else StoredRow(*found)

    def add(self, key: str, row: StoredRow) -> None:
        """Write the row, all of it or nothing."""
        self._images.add(key, row.images, row.record)
