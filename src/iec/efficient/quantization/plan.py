"""A quantization plan: everything that calibration found, saved beside the settings that it was found with."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.bias import bias_shifts
from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.layers import Reconstructed
from iec.efficient.quantization.network import quantize_network, search_weights
from iec.efficient.quantization.quantizer import Grid
from iec.efficient.quantization.reconstruction.record import UnitRecord
from iec.efficient.quantization.statistics import ActivationStatistics
from iec.efficient.quantization.weights import pack_halves, unpack_halves
from iec.runtime import subclass
from iec.runtime.sampler import Sampler, sampler_settings
from iec.storage.fingerprint import fingerprint
from iec.storage.plan_files import read_plan, require_model, write_plan

KIND = "quantization"


@dataclass(frozen=True)
class QuantizationPlan:
    """How one network is quantized for runs of `num_steps` steps.

    weights: the grids of every layer, by its name, one per part [O, 1, ...]. activations: the grid of every activation,
    by its key [groups of steps]. model: the fingerprint of the float network.
    reconstructed: the layers, by name, whose weights are not rounded to the nearest. units: what reconstruction did.
    shifts: what is added to the outputs of layers to correct their bias, by name, float32 [groups of steps, O].
    sampler: that of the calibration.
    """

    config: QuantizationConfig
    num_steps: int
    weights: Mapping[str, list[Grid]]
    activations: Mapping[str, Grid]
    model: str
    reconstructed: Mapping[str, Reconstructed] = field(default_factory=dict)
    units: tuple[UnitRecord, ...] = ()
    shifts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sampler: Sampler | None = None

    @classmethod
    def of(
        cls, network: nn.Module, statistics: ActivationStatistics, corrected_first: Collection[str] = ()
    ) -> "QuantizationPlan":
        """The plan of a float network whose activations were recorded. Raises ValueError where they were not.

        corrected_first: the layers whose first part is corrected otherwise (DEC).
        """
        activations = statistics.grids()
        assert statistics.num_steps is not None
        covered = statistics.covered
        weights = search_weights(network, covered)
        shifts = bias_shifts(network, covered, weights, statistics.means, corrected_first)
        model = fingerprint(network)
        return cls(covered.config, statistics.num_steps, weights, activations, model, shifts=shifts)

    def with_part(self, part: "QuantizationPlan") -> "QuantizationPlan":
        """This plan with what `part`, of the same network, says of some layers."""
        return replace(
            self,
            weights={**self.weights, **part.weights},
            activations={**self.activations, **part.activations},
            reconstructed={**self.reconstructed, **part.reconstructed},
            units=self.units + part.units,
        )

    def put_on(self, network: nn.Module) -> type[nn.Module]:
        """Quantize `network` and return its class for as long as it is quantized.

        Raises ValueError, before anything is changed, where it is not the plan's.
        """
        covered = coverage(network, self.config)
        require_model(network, self.model)
        quantize_network(network, covered, self.weights, self.activations, self.num_steps, self.reconstructed)
        for name, shift in self.shifts.items():
            layer: Any = network.get_submodule(name)
            by_step = shift.repeat_interleave(self.config.steps_per_group, 0)[: self.num_steps]
            layer.set_correction(None, by_step.to(next(layer.buffers()).device))
        return subclass(type(network))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        codes = self._codes()
        settings = {
            "model": self.model,
            "num_steps": self.num_steps,
            "sampler": sampler_settings(self.sampler),
            "config": asdict(self.config),
            "bits": {name: grid.bits for name, grid in self._grids().items()},
            "codes": {name: list(own.shape) for name, (own, _) in codes.items()},
            "units": [asdict(unit) for unit in self.units],
        }
        write_plan(folder, KIND, settings, self.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the plan's file of tensors holds, by name."""
        tensors = {}
        for name, grid in self._grids().items():
            tensors[f"{name}/delta"] = grid.delta
            tensors[f"{name}/zero_point"] = grid.zero_point.to(torch.uint8)
        for name, (own, bits) in self._codes().items():
            tensors[name] = pack_halves(own) if bits <= 4 else own
        for name, found in self.reconstructed.items():
            if found.bias is not None:
                tensors[f"bias/{name}"] = found.bias
        return {**tensors, **{f"shift/{name}": shift for name, shift in self.shifts.items()}}

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
            config = QuantizationConfig.from_dict(settings["config"])
            num_steps, model = int(settings["num_steps"]), str(settings["model"])
            units = tuple(UnitRecord(**unit) for unit in settings.get("units", []))
            sampler = Sampler.from_dict(settings.get("sampler"))
            reconstructed = _reconstructed(settings, tensors)
            shifts = {name.removeprefix("shift/"): x for name, x in tensors.items() if name.startswith("shift/")}
            return cls(config, num_steps, weights, activations, model, reconstructed, units, shifts, sampler)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The plan in '{folder}' is incomplete: {error}.") from error

    def _grids(self) -> dict[str, Grid]:
        parts = {f"weight/{name}:{i}": grid for name, grids in self.weights.items() for i, grid in enumerate(grids)}
        return {**parts, **{f"activation/{key}": grid for key, grid in self.activations.items()}}

    def _codes(self) -> dict[str, tuple[torch.Tensor, int]]:
        """The codes of every part of a reconstructed layer, with their bits."""
        return {
            f"code/{name}:{i}": (own, self.weights[name][i].bits)
            for name, found in self.reconstructed.items()
            for i, own in enumerate(found.codes)
        }


def _reconstructed(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Reconstructed]:
    codes: dict[str, list[torch.Tensor]] = {}
    for key, shape in settings.get("codes", {}).items():
        name = key.removeprefix("code/")
        own = tensors[key]
        if settings["bits"][f"weight/{name}"] <= 4:
            own = unpack_halves(own, torch.Size(shape))
        codes.setdefault(name.rpartition(":")[0], []).append(own)
    return {name: Reconstructed(own, tensors.get(f"bias/{name}")) for name, own in codes.items()}
