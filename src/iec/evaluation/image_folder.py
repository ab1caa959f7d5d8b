"""A folder of sampled images that can be interrupted at any moment, resumed, and filled by several processes.

Every file is written under another name first and renamed. A batch counts as done once `batches/` has its record, which
is written after its images; an interrupted batch is sampled again, to the same bytes. Whoever finds all batches done
gathers the records into `sampling.json`, which says that the run is complete.
"""

import contextlib
import json
import math
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iec.evaluation.cost import EvaluationCost
from iec.evaluation.generate import Batch
from iec.method.noise import IMAGES_PER_SEED
from iec.storage.files import UNFINISHED, create_json, require_writable, write_atomically, write_json


class ImageFolder:
    """The images of one run, `000000.png` and so on, beside `sampling.json` with its settings, seeds and cost.

    settings: everything that decides the images' bytes. Raises ValueError where the folder cannot be written, or
    holds a run with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], num_images: int, cost: EvaluationCost) -> None:
        self.path, self.settings, self.num_images, self.cost = Path(path), dict(settings), num_images, cost
        self.record, self.parts = self.path / "sampling.json", self.path / "batches"
        self.complete = False
        require_writable(path)
        self._claim()

    @property
    def num_batches(self) -> int:
        """How many batches the images are."""
        size: int = self.settings["batch_size"]
        return math.ceil(self.num_images / size)

    def image(self, index: int) -> Path:
        """The file of one image."""
        return self.path / f"{index:06d}.png"

    def images_of(self, number: int) -> range:
        """The indices of the images of one batch."""
        size = self.settings["batch_size"]
        return range(number * size, min((number + 1) * size, self.num_images))

    def done(self) -> frozenset[int]:
        """The batches, of all processes, whose images are all there."""
        names = {file.name for file in self.path.iterdir()}
        return frozenset(
            number
            for number in {*self.recorded(), *map(int, self._read()["batches"])}
            if number < self.num_batches and all(self.image(i).name in names for i in self.images_of(number))
        )

    def recorded(self) -> frozenset[int]:
        """The batches that were noted, by all processes, since the records were last gathered."""
        files = self.parts.iterdir() if self.parts.is_dir() else ()
        return frozenset(int(file.stem) for file in files if not file.name.startswith("."))

    def count(self, batches: frozenset[int]) -> int:
        """How many images these batches have."""
        return sum(len(self.images_of(number)) for number in batches)

    def add(self, batch: Batch) -> None:
        """Write the images of one batch, then note the batch and its cost."""
        for index, pixels in zip(batch.indices, batch.images, strict=True):
            write_atomically(self.image(index), lambda file, pixels=pixels: _save_png(pixels, file))  # type: ignore[misc]
        number = batch.start // self.settings["batch_size"]
        part = {
            "full_evaluations": batch.summary.full_evaluations,
            "cached_evaluations": batch.summary.cached_evaluations,
            "seconds": round(batch.seconds, 4),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        write_json(self.parts / f"{number:06d}.json", part)

    def finish(self) -> None:
        """Where all batches are done, by whatever process, gather their records and set `complete`."""
        if len(self.done()) < self.num_batches or self._read()["images"] != self.num_images:
            return
        self.complete = True
        write_json(self.record, self.to_dict())
        shutil.rmtree(self.parts, ignore_errors=True)
        for leftover in self.path.glob(f".*.png-*{UNFINISHED}"):  # of killed processes
            leftover.unlink(missing_ok=True)

    def to_dict(self) -> dict[str, Any]:
        """Settings, seeds and cost, as `sampling.json` holds them; evaluations per image, seconds of all batches."""
        batches = self._batches()
        first: dict[str, float] = next(iter(batches.values()), {})
        full, cached = first.get("full_evaluations", 0), first.get("cached_evaluations", 0)
        seed = self.settings["seed"]
        return {
            "settings": self.settings,
            "images": self.num_images,
            "complete": self.complete,
            "generator_seeds": [seed * IMAGES_PER_SEED + i for i in range(self.num_images)],
            "cost": {
                "full_evaluations": full,
                "cached_evaluations": cached,
                **_in_full_evaluations(self.cost, full, cached),
                "seconds": round(sum(batch["seconds"] for batch in batches.values()), 3),
                "peak_memory_mb": max((batch.get("peak_memory_mb", 0) for batch in batches.values()), default=0),
            },
            "batches": {str(number): batches[number] for number in sorted(batches)},
        }

    def _claim(self) -> None:
        """Make this run's record, or find one of the same settings there; of two runs at once, one makes it."""
        strangers = any(self.path.glob("*.png"))  # looked for first: another process may be making record and images
        if strangers and not self.record.is_file():
            raise ValueError(f"'{self.path}' holds images but no sampling.json: use an empty folder.")
        if not self.record.is_file():
            create_json(self.record, self.to_dict())
        found = self._read()
        for name in sorted({*found["settings"], *self.settings}):
            if found["settings"].get(name) != self.settings.get(name):
                raise ValueError(
                    f"'{self.path}' holds a run with {name} {found['settings'].get(name)}, "
                    f"not {self.settings.get(name)}: use another folder."
                )
        if found["images"] > self.num_images:
            raise ValueError(
                f"'{self.path}' already holds {found['images']} images of this run: ask for at least as many, "
                "or use another folder."
            )
        if found["images"] < self.num_images:
            write_json(self.record, self.to_dict())

    def _read(self) -> dict[str, Any]:
        if not self.record.is_file():
            return {"settings": {}, "batches": {}, "images": 0}
        try:
            found: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
            return {
                "settings": dict(found["settings"]),
                "batches": dict(found["batches"]),
                "images": int(found["images"]),
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{self.record}' is no record of a sampling run: use another folder.") from error

    def _batches(self) -> dict[int, dict[str, float]]:
        parts = {}
        for number in self.recorded():
            # Another process may be gathering them: what is gone is in the record, which is read after them.
            with contextlib.suppress(FileNotFoundError):
                parts[number] = json.loads((self.parts / f"{number:06d}.json").read_text(encoding="utf-8"))
        return {int(number): batch for number, batch in self._read()["batches"].items()} | parts


def _in_full_evaluations(unit: EvaluationCost, full: float, cached: float) -> dict[str, float]:
    return {
        "cost_per_image": round(unit.total(full, cached), 3),
        "cached_evaluation_in_full": round(unit.cached_fraction, 4),
        "full_evaluation_multiply_adds": unit.full,
    }


def _save_png(pixels: torch.Tensor, file: Path) -> None:
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, format="PNG")
