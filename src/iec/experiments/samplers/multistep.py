"""diffusers' multistep solvers: on the paper's quad grid where they can take it, otherwise on their own.

On an even grid DDIM's last steps end at timestep 0, a leap in log-SNR over which a multistep solver extrapolates badly;
their own even grid leaves that timestep out.
"""

from typing import Any

import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler

from iec.experiments.samplers.grid import distinct_timesteps


class GridDPMSolverScheduler(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """DPM-Solver++(2M) over the quad timesteps, or its own even ones where `config.spacing` is another."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of so many evaluations."""
        super().set_timesteps(num_inference_steps, device)
        _put_on_grid(self, device)


class GridUniPCScheduler(UniPCMultistepScheduler):  # type: ignore[misc]
    """UniPC-3, the order that is advised without guidance, over timesteps as of `GridDPMSolverScheduler`."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of so many evaluations."""
        super().set_timesteps(num_inference_steps, device)
        _put_on_grid(self, device)


class GridDEISScheduler(DEISMultistepScheduler):  # type: ignore[misc]
    """DEIS-3, the order that is advised without guidance, over timesteps as of `GridDPMSolverScheduler`.

    It extrapolates in the logarithm of the noise level, which a clean image does not have, so that it ends at the level
    of timestep 0 and evaluates nothing there: on quad, its grid is that of one timestep more.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of so many evaluations."""
        super().set_timesteps(num_inference_steps, device)
        _put_on_grid(self, device, clean=False)


class PLMSScheduler(PNDMScheduler):  # type: ignore[misc]
    """PLMS over evenly spaced timesteps, the only ones that diffusers' PNDM takes; its first step takes two."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of so many evaluations."""
        super().set_timesteps(num_inference_steps - 1, device)


def dpm_solver(spacing: str, **noise_schedule: Any) -> GridDPMSolverScheduler:
    """DPM++ 2M for a model with this noise schedule."""
    scheduler = GridDPMSolverScheduler(**noise_schedule, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.register_to_config(spacing=spacing)
    return scheduler


def unipc(spacing: str, **noise_schedule: Any) -> GridUniPCScheduler:
    """UniPC for a model with this noise schedule."""
    scheduler = GridUniPCScheduler(**noise_schedule, solver_order=3)
    scheduler.register_to_config(spacing=spacing)
    return scheduler


def deis(spacing: str, **noise_schedule: Any) -> GridDEISScheduler:
    """DEIS for a model with this noise schedule."""
    scheduler = GridDEISScheduler(**noise_schedule, solver_order=3)
    scheduler.register_to_config(spacing=spacing)
    return scheduler


def plms(spacing: str, **noise_schedule: Any) -> PLMSScheduler:
    """PLMS for a model with this noise schedule; the spacing is its own."""
    return PLMSScheduler(**noise_schedule, skip_prk_steps=True, set_alpha_to_one=True)


def stable_diffusion_plms(spacing: str, **noise_schedule: Any) -> PLMSScheduler:
    """PLMS over Stable Diffusion's timesteps: from 1 on, the last step ending at the first alpha-bar, not at 1."""
    return PLMSScheduler(**noise_schedule, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


def _put_on_grid(scheduler: Any, device: str | torch.device | None, clean: bool = True) -> None:
    """Replace the timesteps, and the noise levels sqrt(1/alpha-bar - 1) that the solver steps between.

    clean: the last step ends at a clean image; otherwise at the grid's last timestep, where nothing is evaluated.
    """
    config, count = scheduler.config, scheduler.num_inference_steps
    if config.spacing != "quad":
        return
    grid = distinct_timesteps(count if clean else count + 1, config.spacing, config.num_train_timesteps)
    alphas = scheduler.alphas_cumprod.double().cpu()[grid]
    levels = (1 / alphas - 1).sqrt()
    scheduler.timesteps = torch.tensor(grid[:count], device=device)
    scheduler.sigmas = (torch.cat([levels, levels.new_zeros(1)]) if clean else levels).float()
