"""DDIM with the paper's spacings behind diffusers' scheduler interface, which diffusers' own DDIM cannot take.

The previous timestep is the next one in the sequence (by index, duplicates kept), eta is honoured, nothing is
clipped, and the coefficients are float64 (paper Eq. 3-6).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from iec.method.ddim import SPACINGS, Spacing, alpha_pairs, coefficients, spaced_timesteps


@dataclass
class SpacedDDIMOutput(BaseOutput):  # type: ignore[misc]
    """prev_sample: x_{t-1}. pred_original_sample: the predicted x_0. Both [B, ...]."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class SpacedDDIMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DDIM over `quad`, `uniform` or `linspace` timesteps (see `iec.method.ddim.spaced_timesteps`).

    Raises ValueError for an unknown spacing or prediction type.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        spacing: Spacing = "quad",
        drop_duplicates: bool = False,
    ) -> None:
        if spacing not in SPACINGS:
            raise ValueError(f"Unknown spacing '{spacing}': use {', '.join(SPACINGS)}.")
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"Unknown prediction type '{prediction_type}': use epsilon, v_prediction or sample.")
        betas = _betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, spacing: Spacing = "quad", drop_duplicates: bool = False
    ) -> "SpacedDDIMScheduler":
        """The same noise schedule and prediction type as another diffusers scheduler, with the paper's spacing.

        Raises ValueError for a scheduler without noise levels alpha-bar, such as those of flow matching.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"{type(scheduler).__name__} has no noise levels alpha-bar, and DDIM cannot stand in its place: "
                "keep the model's own scheduler."
            )
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
        settings = {name: scheduler.config[name] for name in names if name in scheduler.config}
        spaced: SpacedDDIMScheduler = cls(**settings, spacing=spacing, drop_duplicates=drop_duplicates)
        return spaced

    @property
    def step_index(self) -> int | None:
        """The index of the step that comes next; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where sampling begins in `timesteps`, if it was set."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this index of `timesteps`, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps. Raises ValueError for a number that the spacing cannot take."""
        config = self.config
        sequence = spaced_timesteps(
            num_inference_steps, config.spacing, config.num_train_timesteps, config.drop_duplicates
        )
        pairs = alpha_pairs(sequence, self.alphas_cumprod, config.spacing)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(sequence, device=device)
        self._alpha_pairs = pairs
        self._step_index = self._begin_index = None

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """DDIM does not scale the network's input."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SpacedDDIMOutput | tuple[torch.Tensor, torch.Tensor]:
        """x_{t-1} from x_t and the model output, all [B, ...] (paper Eq. 6); steps are taken in sequence order."""
        if self.num_inference_steps is None:
            raise ValueError("Call set_timesteps before step.")
        if self._step_index is None:
            self._step_index = self._first_index(timestep)
        alpha, alpha_prev = self._alpha_pairs[self._step_index]
        state = sample.to(torch.promote_types(sample.dtype, torch.float32))
        eps = _epsilon(model_output.to(state.dtype), state, alpha, self.config.prediction_type)
        noise = None
        if eta > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(sample.shape, generator=generator, device=sample.device)
            noise = variance_noise.to(state.dtype)
        previous = coefficients(alpha, alpha_prev, eta).update(state, eps, noise).to(sample.dtype)
        original = ((state - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)).to(sample.dtype)
        self._step_index += 1
        return SpacedDDIMOutput(previous, original) if return_dict else (previous, original)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) z, with one timestep per sample."""
        alpha = self.alphas_cumprod.to(original.device)[timesteps].view(-1, *[1] * (original.dim() - 1))
        return (alpha.sqrt() * original + (1 - alpha).sqrt() * noise).to(original.dtype)

    def _first_index(self, timestep: int | torch.Tensor) -> int:
        if self._begin_index is not None:
            return self._begin_index
        matches = (self.timesteps == torch.as_tensor(timestep, device=self.timesteps.device)).nonzero()
        if not len(matches):
            raise ValueError(f"Timestep {int(timestep)} is not among the timesteps of this scheduler.")
        return int(matches[0, 0])

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _epsilon(output: torch.Tensor, sample: torch.Tensor, alpha: float, prediction_type: str) -> torch.Tensor:
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if prediction_type == "v_prediction":
        return signal * output + noise * sample
    if prediction_type == "sample":
        return (sample - signal * output) / noise
    return output


def _betas(count: int, start: float, end: float, schedule: str, trained: list[float] | None) -> torch.Tensor:
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    if schedule == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    betas: torch.Tensor = DDIMScheduler(count, start, end, schedule).betas.double()
    return betas
