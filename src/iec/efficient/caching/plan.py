"""A DeepCache plan: the full steps and the forecast that were found for one network and one number of steps."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficient.caching.config import CalibratedSteps, DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.efficient.caching.forecast import TERMS, memory_of
from iec.runtime.sampler import Sampler, sampler_settings
from iec.storage.plan_files import read_plan, require_model, write_plan

KIND = "deepcache"


@dataclass(frozen=True)
class DeepCachePlan:
    """How one network is cached in runs of `num_steps` calls.

    model: the fingerprint of the network. full_steps: sorted, beginning with 0. sampler: that of the calibration.
    gains: the forecast's, float64 [T, 2], 0 at steps without one; None: nothing is forecast.
    """

    config: DeepCacheConfig
    num_steps: int
    model: str
    full_steps: tuple[int, ...]
    sampler: Sampler | None = None
    gains: torch.Tensor | None = None

    @property
    def cache(self) -> CalibratedSteps:
        """The full steps and the branch."""
        return CalibratedSteps(self.full_steps, self.num_steps, self.config.branch)

    def put_on(self, network: Any) -> type[nn.Module]:
        """The class that caches the features of `network`.

        Raises TypeError or ValueError where it is not the plan's network.
        """
        require_cacheable(network, self.cache)
        require_model(network, self.model)
        return cached_class(type(network), self.cache, memory=memory_of(self.full_steps, self.gains))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        settings = {
            "model": self.model,
            "num_steps": self.num_steps,
            "sampler": sampler_settings(self.sampler),
            "config": asdict(self.config),
        }
        tensors = {"full_steps": torch.tensor(self.full_steps)}
        if self.gains is not None:
            tensors["gains"] = self.gains
        write_plan(folder, KIND, settings, tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DeepCachePlan":
        """The plan in `folder`. Raises ValueError where a file is missing or corrupt, or of another schema."""
        settings, tensors = read_plan(folder, KIND)
        try:
            config, num_steps = DeepCacheConfig(**settings["config"]), int(settings["num_steps"])
            sampler = Sampler.from_dict(settings.get("sampler"))
            model, full_steps = str(settings["model"]), tuple(tensors["full_steps"].tolist())
            gains = tensors["gains"] if config.forecast else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"The plan in '{folder}' is incomplete: {error}.") from error
        if gains is not None and gains.shape != (num_steps, TERMS):
            raise ValueError(f"The plan in '{folder}' is corrupt: calibrate again.")
        return cls(config, num_steps, model, full_steps, sampler, gains)
