"""The error of the state at every timestep, against the full-precision run from the same noise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline

from iec.evaluation.bootstrap import Estimate, bootstrap_mean
from iec.runtime import Part, Participant, Run, attach, detach

_NAME = "latents"


@contextmanager
def recorded_latents(pipe: DiffusionPipeline) -> Iterator[list[torch.Tensor]]:
    """While entered, every step's state [B, ...] of the next call of `pipe`, float32 on the CPU, joins the list.

    Enter it inside of `iec.enabled`, or after `iec.enable`: then a corrected step's state is the corrected one. A new
    call starts the list anew.
    """
    latents: list[torch.Tensor] = []
    attach(pipe, _NAME, _Recorder(latents))
    try:
        yield latents
    finally:
        detach(pipe, _NAME)


def latent_errors(latents: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean squared difference of every sample at every step, float64 [T, n], of T states [n, ...] each.

    Raises ValueError where the runs differ in steps or shapes.
    """
    if len(latents) != len(reference) or not latents:
        raise ValueError(f"Two runs of as many steps are needed, not of {len(latents)} and {len(reference)}.")
    shapes = {tuple(state.shape) for state in (*latents, *reference)}
    if len(shapes) > 1:
        raise ValueError(f"The states of both runs must have one shape, not {sorted(shapes)}.")
    pairs = zip(latents, reference, strict=True)
    return torch.stack([(a.double() - b.double()).square().flatten(1).mean(1) for a, b in pairs])


def latent_error_estimates(errors: torch.Tensor) -> list[Estimate]:
    """The mean over samples at every step, with its interval, of errors [T, n], n at least 10."""
    return [bootstrap_mean(step) for step in errors]


class _Recorder(Participant):
    def __init__(self, latents: list[torch.Tensor]) -> None:
        self.latents = latents

    def join(self, run: Run) -> Part:
        self.latents.clear()
        return _RecorderPart(self.latents)


class _RecorderPart(Part):
    def __init__(self, latents: list[torch.Tensor]) -> None:
        self.latents = latents

    def step(self, commit: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = commit(*args, **kwargs)
        state = output[0] if isinstance(output, tuple) else output.prev_sample
        self.latents.append(state.detach().to("cpu", torch.float32, copy=True))
        return output
