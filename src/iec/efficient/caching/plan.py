"""A DeepCache plan: the full steps that were found for one network and one number of steps."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficient.caching.config import CalibratedSteps, DeepCacheConfig
from iec.efficient.caching.deepcache import cached_class, require_cacheable
from iec.runtime.sampler import Sampler, sampler_settings
from iec.storage.plan_files import read_plan, require_model, write_plan

KIND = "deepcache"


@dataclass(frozen=True)
class DeepCachePlan:
    """How one network is cached in runs of `num_steps` calls.

    model: the fingerprint of the network. full_steps: sorted, beginning with 0. sampler: that of the calibration.
    """

    config: DeepCacheConfig
    num_steps: int
    model: str
    full_steps: tuple[int, ...]
    sampler: Sampler | None = None

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
        return cached_class(type(network), self.cache)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plan into `folder`, all of it or nothing."""
        settings = {
            "model": self.model,
            "num_steps": self.num_steps,
            "sampler": sampler_settings(self.sampler),
            "config": asdict(self.config),
        }
        write_plan(folder, KIND, settings, {"full_steps": torch.tensor(self.full_steps)})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DeepCachePlan":
        """The plan in `folder`. Raises ValueError where a file is missing or corrupt, or of another schema."""
        settings, tensors = read_plan(folder, KIND)
        try:
            config, num_steps = DeepCacheConfig(**settings["config"]), int(settings["num_steps"])
            sampler = Sampler.from_dict(settings.get("sampler"))
            return cls(config, num_steps, str(settings["model"]), tuple(tensors["full_steps"].tolist()), sampler)
        except (KeyError, TypeError) as error:
            raise ValueError(f"The plan in '{folder}' is incomplete: {error}.") from error
