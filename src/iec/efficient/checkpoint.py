"""A folder from which an interrupted calibration goes on: its settings, and what every stage has gathered so far."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from iec.efficient.accumulators import State
from iec.storage.files import UNFINISHED, require_writable, write_atomically, write_json
from iec.storage.fingerprint import tensors_fingerprint

SCHEMA = 1
#: Stages are written at most this often, and for at most a tenth of the time.
SECONDS = 20.0
_SETTINGS = "checkpoint.json"


class Checkpoint:
    """The checkpoint in `folder`, or the one that will be there.

    settings: JSON values, of everything that the calibration depends on. Every write is whole or not there at all.
    Raises ValueError where the folder holds the checkpoint of other settings, a corrupt one or other files, or cannot
    be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(folder)
        self.settings: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **settings}))
        self._written, self._took = time.monotonic(), 0.0
        self._folders: list[Path] = []
        # The folder itself is made when there is something to keep: settings may still be refused.
        require_writable(self.path if self.path.exists() else self.path.parent)
        if (self.path / _SETTINGS).exists():
            self._require_same()
        elif self.path.exists() and any(not path.name.endswith(UNFINISHED) for path in self.path.iterdir()):
            raise ValueError(f"'{folder}' holds other files: give a folder of its own for the checkpoint.")

    def load(self, stage: str) -> tuple[int, State] | None:
        """How many trajectories `stage` has run, and its state; None where it was not begun.

        Raises ValueError for a corrupt file.
        """
        path = self._file(stage)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                notes = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if notes["digest"] != tensors_fingerprint(state):
                raise self.corrupt()
            return int(notes["done"]), state
        except (SafetensorError, KeyError, TypeError) as error:
            raise self.corrupt() from error

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= max(SECONDS, 10 * self._took)

    def save(self, stage: str, done: int, state: State) -> None:
        """Write that `stage` has run `done` trajectories and is in this state, in the place of an earlier one."""
        self._begin()
        began = time.monotonic()
        tensors: dict[str, torch.Tensor] = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        notes = {"done": str(done), "digest": tensors_fingerprint(tensors)}
        write_atomically(self._file(stage), lambda path: save_file(tensors, path, notes))
        self._written = time.monotonic()
        self._took = self._written - began

    def folder(self, stage: str) -> Path:
        """A folder in the checkpoint, which a stage fills by itself and which ends with the checkpoint."""
        self._begin()
        path = self.path / stage
        self._folders.append(path)
        return path

    def finish(self) -> None:
        """Delete it: the calibration is complete."""
        if not self.path.exists():
            return
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        for path in [*self.path.glob("*.safetensors"), *self.path.glob(f"*{UNFINISHED}"), self.path / _SETTINGS]:
            path.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def corrupt(self) -> ValueError:
        """The error that says so."""
        return ValueError(f"The checkpoint in '{self.path}' is corrupt: delete the folder and calibrate again.")

    def _begin(self) -> None:
        if not (self.path / _SETTINGS).exists():
            write_json(self.path / _SETTINGS, self.settings)

    def _file(self, stage: str) -> Path:
        return self.path / f"{stage}.safetensors"

    def _require_same(self) -> None:
        try:
            found: dict[str, Any] = json.loads((self.path / _SETTINGS).read_text(encoding="utf-8"))
            differing = [name for name in {**self.settings, **found} if found.get(name) != self.settings.get(name)]
        except (ValueError, AttributeError, TypeError) as error:
            raise self.corrupt() from error
        if differing:
            raise ValueError(
                f"'{self.path}' holds the checkpoint of a calibration with another {' and another '.join(differing)}: "
                "give another folder, or delete it."
            )
