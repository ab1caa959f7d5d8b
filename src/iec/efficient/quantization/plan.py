"""A quantization plan: everything that calibration found, saved beside the settings that it was found with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from iec.efficient.plan_files import read_plan, require_model, write_plan
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import quantize_network, quantized_class, search_weights
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.statistics import ActivationStatistics
from iec.storage.fingerprint import fingerprint

KIND = "quantization"


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

    def put_on(self, network: nn.Module) -> type[nn.Module]:
        """Quantize `network` and return its class for as long as it is quantized.

        Raises ValueError, before anything is changed, where it is not the plan's.
        """
        covered = coverage(network, self.config)
        require_model(network, self.model)
        quantize_network(network, covered, self.weights, self.activations, self.num_steps)
        return quantized_class(type(network))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        tensors = {}
        for name, grid in self._grids().items():
            tensors[f"{name}/delta"] = grid.delta
            tensors[f"{name}/zero_point"] = grid.zero_point.to(torch.uint8)
        settings = {
            "model": self.model,
            "num_steps": self.num_steps,
            "config": asdict(self.config),
            "bits": {name: grid.bits for name, grid in self._grids().items()},
        }
        write_plan(folder, KIND, settings, tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "QuantizationPlan":
        """The plan in `folder`. Raises ValueError where a file is missing or corrupt, or of a newer schema."""
        settings, tensors = read_plan(folder, KIND)
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
