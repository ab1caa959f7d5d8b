"""What kind of a step a scheduler takes, found by taking two of its steps on a tiny state."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from iec.pipelines.errors import IECUnsupportedError
from iec.pipelines.scheduler_state import copied_scheduler
from iec.pipelines.step_map import previous_sample

#: An output whose prediction of the clean state lies far outside [-1, 1], so that clipping shows.
_LARGE = 100.0


@dataclass(frozen=True)
class StepKind:
    """stochastic: a step draws noise. multistep: a step uses earlier outputs, or is one part of a longer one.

    affine: a step is affine in the output: it neither clips nor thresholds.
    """

    stochastic: bool
    multistep: bool
    affine: bool


def step_kind(scheduler: Any, arguments: Mapping[str, Any]) -> StepKind:
    """The kind of the steps of a scheduler whose timesteps are set; it stays as it is.

    arguments: of the pipeline's call, of which `eta` reaches the step.
    Raises IECUnsupportedError where its steps need more than an output, a timestep and a sample.
    """
    takes = inspect.signature(type(scheduler).step).parameters
    settings = {name: arguments[name] for name in ("eta",) if name in takes and arguments.get(name) is not None}
    try:
        base = _second_state(scheduler, settings)
        once, twice = (_second_state(scheduler, settings, output=size) for size in (_LARGE, 2 * _LARGE))
        return StepKind(
            stochastic=not torch.equal(base, _second_state(scheduler, settings, seed=1)),
            multistep=not torch.equal(base, _second_state(scheduler, settings, first_output=1.0)),
            affine=bool((twice - 2 * once + base).abs().max() <= 1e-4 * (1 + twice.abs().max())),
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        raise IECUnsupportedError(
            f"The steps of {type(scheduler).__name__} cannot be tried out, so it is not known whether outputs may be "
            "corrected before them: use DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler."
        ) from error


def _second_state(
    scheduler: Any, settings: Mapping[str, Any], first_output: float = 0.0, output: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """What the second step (of a run of one step: the first) makes of a fixed state and output."""
    own = copied_scheduler(scheduler)
    device = torch.as_tensor(own.timesteps).device
    state = torch.ones(1, 1, 2, 2, device=device)
    result = state
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not `torch.manual_seed`, which seeds every kind of device and takes a millisecond.
        on_cuda = device.type == "cuda"
        generator = torch.cuda.default_generators[device.index or 0] if on_cuda else torch.default_generator
        generator.manual_seed(seed)
        for i, timestep in enumerate(own.timesteps[:2]):
            if hasattr(own, "scale_model_input"):
                own.scale_model_input(state, timestep)
            given = torch.full_like(state, first_output if i == 0 and len(own.timesteps) > 1 else output)
            result = previous_sample(own.step(given, timestep, state, **settings))
    return result
