"""A folder of sampled images that can be interrupted at any moment and resumed.

Every PNG is written under another name first and renamed, and a batch counts as done once `sampling.json` says so;
an interrupted batch is sampled again, to the same bytes.
"""

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iec.evaluation.cost import EvaluationCost
from iec.evaluation.generate import Batch
from iec.method.noise import IMAGES_PER_SEED
from iec.storage.files import UNFINISHED, require_writable, write_atomically, write_json


class ImageFolder:
    """The images of one run, `000000.png` and so on, beside `sampling.json` with its settings, seeds and cost.

    settings: everything that decides the images' bytes. Raises ValueError where the folder cannot be written, or
    holds a run with other settings.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], num_images: int, cost: EvaluationCost | None
    ) -> None:
        self.path, self.settings, self.num_images, self.cost = Path(path), dict(settings), num_images, cost
        require_writable(path)
        self.batches: dict[int, dict[str, float]] = self._resumed()
        for leftover in self.path.glob(f".*{UNFINISHED}"):
            leftover.unlink()

    @property
    def done(self) -> frozenset[int]:
        """The batches whose images are all there."""
        return frozenset(
            number for number in self.batches if all(self.image(i).is_file() for i in self.images_of(number))
        )

    def image(self, index: int) -> Path:
        """The file of one image."""
        return self.path / f"{index:06d}.png"

    def add(self, batch: Batch) -> None:
        """Write the images of one batch, then note the batch and its cost."""
        for index, pixels in zip(batch.indices, batch.images, strict=True):
            write_atomically(self.image(index), lambda file, pixels=pixels: _save_png(pixels, file))  # type: ignore[misc]
        self.batches[batch.start // self.settings["batch_size"]] = {
            "full_evaluations": batch.summary.full_evaluations,
            "cached_evaluations": batch.summary.cached_evaluations,
            "seconds": round(batch.seconds, 4),
        }
        write_json(self.path / "sampling.json", self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Settings, seeds and cost, as `sampling.json` holds them; evaluations are per image, seconds of the run."""
        batches = self.batches
        first: dict[str, float] = next(iter(batches.values()), {})
        full, cached = first.get("full_evaluations", 0), first.get("cached_evaluations", 0)
        seed = self.settings["seed"]
        return {
            "settings": self.settings,
            "images": self.num_images,
            "generator_seeds": [seed * IMAGES_PER_SEED + i for i in range(self.num_images)],
            "cost": {
                "full_evaluations": full,
                "cached_evaluations": cached,
                **({} if self.cost is None else _in_full_evaluations(self.cost, full, cached)),
                "seconds": round(sum(batch["seconds"] for batch in batches.values()), 3),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            },
            "batches": {str(number): batches[number] for number in sorted(batches)},
        }

    def images_of(self, number: int) -> range:
        """The indices of the images of one batch."""
        size = self.settings["batch_size"]
        return range(number * size, min((number + 1) * size, self.num_images))

    def _resumed(self) -> dict[int, dict[str, float]]:
        file = self.path / "sampling.json"
        if not file.is_file():
            if any(self.path.glob("*.png")):
                raise ValueError(f"'{self.path}' holds images but no sampling.json: use an empty folder.")
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            settings, batches, images = found["settings"], found["batches"], int(found["images"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{file}' is no record of a sampling run: use another folder.") from error
        for name in sorted({*settings, *self.settings}):
            if settings.get(name) != self.settings.get(name):
                raise ValueError(
                    f"'{self.path}' holds a run with {name} {settings.get(name)}, not {self.settings.get(name)}: "
                    "use another folder."
                )
        if images > self.num_images:
            raise ValueError(
                f"'{self.path}' already holds {images} images of this run: ask for at least as many, "
                "or use another folder."
            )
        return {int(number): batch for number, batch in batches.items()}


def _in_full_evaluations(unit: EvaluationCost, full: float, cached: float) -> dict[str, float]:
    return {
        "cost_per_image": round(unit.total(full, cached), 3),
        "cached_evaluation_in_full": round(unit.cached_fraction, 4),
        "full_evaluation_multiply_adds": unit.full,
    }


def _save_png(pixels: torch.Tensor, file: Path) -> None:
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, format="PNG")
