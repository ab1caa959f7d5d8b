"""Everything that a calibration depends on, as JSON values, so that one checkpoint never continues another's."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from iec import __version__
from iec.efficient.trajectories import Trajectories
from iec.runtime import network_of
from iec.storage.fingerprint import fingerprint, tensors_fingerprint


def identity_of(
    pipe: DiffusionPipeline, config: Any, trajectories: Trajectories, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity of the calibration of `pipe` with `config`, a dataclass, over `trajectories`.

    Raises TypeError for inputs that cannot be told apart.
    """
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {
        "version of iec": __version__,
        "config": described({"kind": type(config).__name__, **asdict(config)}),
        "model": fingerprint(network_of(pipe)),
        "scheduler": described({"kind": type(pipe.scheduler).__name__, **scheduler}),
        "number of steps": trajectories.num_steps,
        "number of samples": trajectories.samples,
        "batch size": trajectories.batch_size,
        "seed": trajectories.seed,
        "set of inputs": described(inputs),
    }


def described(value: Any) -> Any:
    """Inputs and settings as JSON values, tensors and images by their fingerprints.

    Raises TypeError for what cannot be told apart.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): described(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(own) for own in value]
    if isinstance(value, torch.Tensor):
        return tensors_fingerprint({"": value})
    if hasattr(value, "__array_interface__"):  # arrays, and images of PIL
        return tensors_fingerprint({"": torch.from_numpy(np.array(value))})
    raise TypeError(f"A checkpoint cannot tell one {type(value).__name__} from another: calibrate without one.")
