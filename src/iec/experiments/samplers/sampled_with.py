"""A pipeline as a setting samples with it."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from iec.experiments.samplers.epsilon_scaling import epsilon_scaled
from iec.experiments.samplers.heun import HeunScheduler
from iec.experiments.samplers.ipndm import IPNDMScheduler
from iec.experiments.samplers.multistep import deis, dpm_solver, plms, stable_diffusion_plms, unipc
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.samplers.time_shift import time_shifted

_MULTISTEP = {"dpm++2m": dpm_solver, "unipc": unipc, "deis": deis, "plms": plms, "plms-sd": stable_diffusion_plms}
#: Those over DDIM's own grid.
_ON_DDIM = {"heun": HeunScheduler, "ipndm": IPNDMScheduler}
_NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def with_solver(pipe: DiffusionPipeline, sampling: Sampling) -> DiffusionPipeline:
    """`pipe`, whose scheduler is a `SpacedDDIMScheduler`, with the solver in its place; its network is shared."""
    if sampling.solver == "ddim":
        return pipe
    own = copy.copy(pipe)
    own.scheduler = _scheduler(pipe.scheduler.config, sampling)
    return own


@contextmanager
def network_changed(network: nn.Module, sampling: Sampling, scheduler: Any) -> Iterator[None]:
    """While entered, `network` has the changes that cost nothing."""
    with ExitStack() as stack:
        stack.enter_context(epsilon_scaled(network, sampling.epsilon_scale))
        stack.enter_context(time_shifted(network, sampling.time_shift, scheduler.alphas_cumprod))
        yield


def noise_schedule(config: Any) -> dict[str, Any]:
    """What of a scheduler's settings belongs to the model."""
    return {name: config[name] for name in _NOISE_SCHEDULE}


def _scheduler(config: Any, sampling: Sampling) -> Any:
    settings = noise_schedule(config)
    if sampling.solver in _ON_DDIM:
        return _ON_DDIM[sampling.solver](**settings, spacing=config.spacing)
    return _MULTISTEP[sampling.solver](config.spacing, **settings)
