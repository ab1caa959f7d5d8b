"""The arguments with which a pipeline evaluates its network for one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from iec.evaluation.generate import call_arguments
from iec.evaluation.per_image import of_batch
from iec.method.noise import image_generator
from iec.runtime import network_of


@dataclass(frozen=True)
class NetworkCall:
    """One evaluation of a network for one image: with guidance, the rows that it takes together."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def network_call(pipe: DiffusionPipeline, num_steps: int, inputs: Mapping[str, Any]) -> NetworkCall:
    """What `pipe` gives its network at the first of `num_steps` steps; `pipe` must have nothing applied.

    inputs: as of `generate`. Of an unconditional UNet it is made up, without running anything.
    Raises ValueError where the pipeline never evaluates its network.
    """
    network = network_of(pipe)
    if isinstance(network, UNet2DModel) and network.class_embedding is None and network.config.sample_size is not None:
        return made_up_call(network)
    arguments = of_batch(call_arguments(pipe, 1, dict(inputs)), range(1))
    handle = network.register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        pipe(**arguments, generator=[image_generator(0, 0)], num_inference_steps=num_steps, output_type="np")
    except _Reached as reached:
        return reached.call
    finally:
        handle.remove()
    raise ValueError(f"This {type(pipe).__name__} makes images without evaluating its network.")


def made_up_call(network: UNet2DModel) -> NetworkCall:
    """An evaluation of an unconditional UNet at its own sample size."""
    config: Any = network.config
    size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size] * 2
    parameter = next(network.parameters())
    x = torch.zeros(1, config.in_channels, *size, dtype=parameter.dtype, device=parameter.device)
    return NetworkCall((x, torch.zeros(1, dtype=torch.int64, device=parameter.device)))


class _Reached(Exception):  # noqa: N818  no error: how the call is left
    def __init__(self, call: NetworkCall) -> None:
        super().__init__()
        self.call = call


def _stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(NetworkCall(args, dict(kwargs)))
