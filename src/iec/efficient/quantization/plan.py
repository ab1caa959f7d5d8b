"""A quantization plan: everything that calibration found, saved beside the settings that it was found with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import Quantized, quantize_network, search_weights
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.statistics import ActivationStatistics
from iec.models.files import write_folder_atomically, write_json
from iec.models.fingerprint import fingerprint

SCHEMA = 1
_SETTINGS, _TENSORS = "plan.json", "plan.safetensors"


@dataclass(frozen=True)
class QuantizationPlan:
    """How one network is quantized for runs of `num_steps` steps.

    weights: the grids of every layer, by its name, one per part [O, 1, ...]. activations: the grid of every activation,
    by its key [groups of steps]. model: the fingerprint of the float network.
    """

    config: QuantizationConfig
    num_steps: int
    weights: Mapping[str, list[Grid]]
    activations: Mapping[str, Grid]
    model: str

    @classmethod
    def of(cls, network: nn.Module, statistics: ActivationStatistics) -> "QuantizationPlan":
        """The plan of a float network whose activations were recorded. Raises ValueError where they were not."""
        activations = statistics.grids()
        assert statistics.num_steps is not None
        weights = search_weights(network, statistics.covered)
        return cls(statistics.covered.config, statistics.num_steps, weights, activations, fingerprint(network))

    def put_on(self, network: nn.Module) -> Quantized:
        """Quantize `network`. Raises ValueError, before anything is changed, where it is not the plan's."""
        covered = coverage(network, self.config)
        found = fingerprint(network)
        if found != self.model:
            raise ValueError(
                f"This plan was calibrated for a model with fingerprint {self.model}, but this one has {found}: "
                "calibrate this model."
            )
        return quantize_network(network, covered, self.weights, self.activations, self.num_steps)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        tensors = {}
        for name, grid in self._grids().items():
            tensors[f"{name}/delta"] = grid.delta.cpu().contiguous()
            tensors[f"{name}/zero_point"] = grid.zero_point.cpu().to(torch.uint8).contiguous()
        settings = {
            "schema": SCHEMA,
            "kind": "quantization",
            "model": self.model,
            "num_steps": self.num_steps,
            "config": asdict(self.config),
            "bits": {name: grid.bits for name, grid in self._grids().items()},
        }

        def write(temporary: Path) -> None:
            save_file(tensors, temporary / _TENSORS)
            write_json(temporary / _SETTINGS, settings)

        write_folder_atomically(folder, write)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "QuantizationPlan":
        """The plan in `folder`. Raises ValueError where a file is missing or corrupt, or of a newer schema."""
        settings, tensors = _read(Path(folder))
        try:
            weights: dict[str, list[Grid]] = {}
            activations: dict[str, Grid] = {}
            for name, bits in settings["bits"].items():
                grid = Grid(tensors[f"{name}/delta"], tensors[f"{name}/zero_point"].float(), bits)
                kind, key = name.split("/", 1)
                if kind == "activation":
                    activations[key] = grid
                else:  # a layer's parts were written in their order
                    weights.setdefault(key.rpartition(":")[0], []).append(grid)
            config = QuantizationConfig(**settings["config"])
            return cls(config, int(settings["num_steps"]), weights, activations, str(settings["model"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The plan in '{folder}' is incomplete: {error}.") from error

    def _grids(self) -> dict[str, Grid]:
        parts = {f"weight/{name}:{i}": grid for name, grids in self.weights.items() for i, grid in enumerate(grids)}
        return {**parts, **{f"activation/{key}": grid for key, grid in self.activations.items()}}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    for name in (_SETTINGS, _TENSORS):
        if not (folder / name).is_file():
            raise ValueError(f"'{folder}' holds no plan: there is no {name} in it.")
    try:
        settings: Any = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        schema = settings["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{folder / _SETTINGS}' is corrupt: calibrate again.") from error
    if schema != SCHEMA:
        raise ValueError(
            f"The plan in '{folder}' has schema {schema}, but this version of iec reads schema {SCHEMA}: "
            "use the version that wrote it, or calibrate again."
        )
    try:
        return settings, load_file(folder / _TENSORS)
    except SafetensorError as error:
        raise ValueError(f"'{folder / _TENSORS}' is corrupt: calibrate again.") from error
