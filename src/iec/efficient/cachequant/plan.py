"""A CacheQuant plan: the full steps, the corrections, and the quantization, of one network and one number of steps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficient.cachequant.config import CacheQuantConfig
from iec.efficient.caching.config import CalibratedSteps
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.efficient.caching.forecast import memory_of
from iec.efficient.caching.memory import Memory
from iec.efficient.quantization.plan import QuantizationPlan
from iec.runtime.sampler import Sampler, sampler_settings
from iec.storage.plan_files import read_plan, require_model, write_plan

KIND = "cachequant"
_QUANTIZATION = "quantization"

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class CacheQuantPlan:
    """How one network is cached, quantized and corrected for runs of `num_steps` steps.

    model: the fingerprint of the float network.
    feature: DEC's scale and shift of the cached feature, float32 [T, C]. layers: its scale and shift of quantized
    layers, by name, [T, O]; empty without quantization. sampler: that of the calibration. gains: of the forecast that
    comes before DEC, as of `DeepCachePlan`.
    """

    config: CacheQuantConfig
    num_steps: int
    model: str
    full_steps: tuple[int, ...]
    feature: Pair
    quantization: QuantizationPlan | None
    layers: Mapping[str, Pair]
    sampler: Sampler | None = None
    gains: torch.Tensor | None = None

    @property
    def cache(self) -> CalibratedSteps:
        """The full steps and the branch."""
        return CalibratedSteps(self.full_steps, self.num_steps, self.config.branch)

    @property
    def memory(self) -> Memory:
        """What the cache keeps, and what cached steps find there."""
        return memory_of(self.full_steps, self.gains)

    def corrected(self, feature: torch.Tensor, step: int) -> torch.Tensor:
        """The feature [B, C, H, W] that step `step` finds, as it uses it."""
        scale, shift = (
            values[step].to(feature.device, feature.dtype).view(-1, *[1] * (feature.dim() - 2))
            for values in self.feature
        )
        return scale * feature + shift

    def put_on(self, network: Any) -> type[nn.Module]:
        """Quantize `network` and return the class that caches its features.

        Raises TypeError or ValueError, before anything is changed, where it is not the plan's.
        """
        require_cacheable(network, self.cache)
        require_model(network, self.model)
        base = type(network)
        if self.quantization is not None:
            base = self.quantization.put_on(network)
            for name, (scale, shift) in self.layers.items():
                layer = network.get_submodule(name)
                device = next(layer.buffers()).device
                shift = shift.to(device) if layer.shift is None else shift.to(device) + layer.shift
                layer.set_correction(scale.to(device), shift)
        return cached_class(base, self.cache, self.corrected, self.memory)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        pairs = {"feature": self.feature, **{f"layer/{name}": pair for name, pair in self.layers.items()}}
        tensors = {f"{name}/{i}": values for name, pair in pairs.items() for i, values in enumerate(pair)}
        if self.gains is not None:
            tensors["gains"] = self.gains
        settings = {
            "model": self.model,
            "num_steps": self.num_steps,
            "sampler": sampler_settings(self.sampler),
            "full_steps": list(self.full_steps),
            "config": asdict(self.config),
            "layers": list(self.layers),
        }
        quantization = self.quantization

        def beside(temporary: Path) -> None:
            if quantization is not None:
                quantization.save_pretrained(temporary / _QUANTIZATION)

        write_plan(folder, KIND, settings, tensors, beside)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CacheQuantPlan":
        """The plan in `folder`. Raises ValueError where a file is missing or corrupt, or of another schema."""
        settings, tensors = read_plan(folder, KIND)
        try:
            config = CacheQuantConfig.from_dict(settings["config"])
            quantization = None
            if config.quantization is not None:
                quantization = QuantizationPlan.from_pretrained(Path(folder) / _QUANTIZATION)
            layers = {name: _pair(tensors, f"layer/{name}") for name in settings["layers"]}
            full_steps, model = tuple(map(int, settings["full_steps"])), str(settings["model"])
            feature = _pair(tensors, "feature")
            num_steps, sampler = int(settings["num_steps"]), Sampler.from_dict(settings.get("sampler"))
            gains = tensors["gains"] if config.forecast else None
            return cls(config, num_steps, model, full_steps, feature, quantization, layers, sampler, gains)
        except (KeyError, TypeError) as error:
            raise ValueError(f"The plan in '{folder}' is incomplete: {error}.") from error


def _pair(tensors: Mapping[str, torch.Tensor], name: str) -> Pair:
    return tensors[f"{name}/0"], tensors[f"{name}/1"]
