"""The calls of a pipeline over the trajectories of a fit, each on a copy of its own that shares the networks."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline

from iec.efficient import applied, apply, remove
from iec.efficient.trajectories import TrajectoryCalls
from iec.method.noise import CALIBRATION_OFFSET, image_generator
from iec.pipelines.deployment import denoisers, technique_of
from iec.runtime import Participant, attach, detach


class Batches:
    """`samples` trajectories in batches: trajectory i depends on (seed + 2000, i) alone."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.parts = [range(i, min(i + batch_size, samples)) for i in range(0, samples, batch_size)]
        image_generator(CALIBRATION_OFFSET + seed, samples - 1)  # refuses a seed outside its range

    def call(
        self,
        pipe: DiffusionPipeline,
        scheduler: Any,
        num_steps: int,
        inputs: Mapping[str, Any],
        part: range,
        *by: Participant,
    ) -> None:
        """Run the trajectories of one part on a copy of `pipe` with this scheduler.

        by: stand around its steps, the first one innermost.
        """
        own = copy.copy(pipe)
        own.scheduler = scheduler
        own.set_progress_bar_config(disable=True)
        for place, participant in enumerate(by):
            attach(own, f"fitting {place}", participant)
        try:
            generators = [image_generator(CALIBRATION_OFFSET + self.seed, i) for i in part]
            TrajectoryCalls(own, num_steps, dict(inputs)).sample(own, generators, part.start)
        finally:
            for place in range(len(by)):
                detach(own, f"fitting {place}")


@contextmanager
def without_technique(pipe: DiffusionPipeline) -> Iterator[None]:
    """While entered, the pipeline's networks are as they are without what makes them efficient.

    Raises ValueError where that cannot be taken off.
    """
    ours = applied(pipe)
    networks: list[Any] = [
        network for network in denoisers(pipe).values() if getattr(network, "_cache_config", None) is not None
    ]
    caches = [(network, network._cache_config) for network in networks]
    try:
        if ours is not None:
            remove(pipe)
        for network, _ in caches:
            network.disable_cache()
        left = technique_of(pipe)
        if left != "none":
            raise ValueError(
                f"'{left}' cannot be taken off this pipeline for the reference: give the full-precision pipeline as "
                "reference=..., or reference='self' to correct the solver's error alone."
            )
        yield
    finally:
        for network, config in caches:
            network.enable_cache(config)
        if ours is not None:
            apply(pipe, ours)
