"""The units that are finished, in a folder, so that an interrupted reconstruction goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iec.efficient.quantization.plan import QuantizationPlan
from iec.storage.files import require_writable, write_json

_IDENTITY = "reconstruction.json"


class FinishedUnits:
    """What was found of each unit, as a plan of its own: parts, by the unit's name, in their order.

    folder: one plan per unit in it, each whole or not there; None keeps them nowhere. identity: of what is
    reconstructed, and how. Raises ValueError where the folder holds units of another identity or cannot be written.
    """

    def __init__(self, folder: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.parts: dict[str, QuantizationPlan] = {}
        if self.folder is None:
            return
        require_writable(self.folder)
        path = self.folder / _IDENTITY
        if not path.exists():
            write_json(path, identity)
        elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(identity)):
            raise ValueError(
                f"'{folder}' holds an unfinished reconstruction of another model or with other settings: "
                "give another folder, or delete it."
            )
        while (part := self._path(len(self.parts))).is_dir():
            plan = QuantizationPlan.from_pretrained(part)
            self.parts[plan.units[0].unit] = plan

    def add(self, part: QuantizationPlan) -> None:
        """Keep the plan of one more unit."""
        if self.folder is not None:
            part.save_pretrained(self._path(len(self.parts)))
        self.parts[part.units[0].unit] = part

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"unit-{index:04}"
