"""Sampled rows in a folder, keyed by their settings, so that none is ever computed twice."""

import json
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


class ResultFolder:
    """Rows by key. Raises ValueError where the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        require_writable(folder)
        self.folder = folder

    def find(self, key: str) -> StoredRow | None:
        """The row of that key, or None. Raises ValueError where its file is corrupt."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                return StoredRow(file.get_tensor("images"), json.loads(file.metadata()[_RECORD]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is corrupt: delete it, and the row is sampled again.") from error

    def add(self, key: str, row: StoredRow) -> None:
        """Write the row, all of it or nothing."""
        metadata = {_RECORD: json.dumps(row.record)}
        write_atomically(
            self._path(key), lambda path: save_file({"images": row.images.contiguous()}, path, metadata=metadata)
        )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
