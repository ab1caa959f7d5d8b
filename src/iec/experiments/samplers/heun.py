"""Heun's method on the DDIM map: what IEC with relaxation 0.5 would be with the label of the state that it evaluates.

A step predicts x' = A x_t + B eps(x_t, t), evaluates at (x', t-1), the label included, and steps again from x_t with
the mean of both predictions. The last step ends at a clean image, which has no label, and is DDIM's.
"""

import torch

from iec.experiments.samplers.grid import distinct_timesteps
from iec.method.ddim import alpha_pairs, coefficients
from iec.runtime import SpacedDDIMScheduler
from iec.runtime.schedulers import SpacedDDIMOutput


class HeunScheduler(SpacedDDIMScheduler):
    """T steps as 2T-1 calls of `step`, one after each evaluation; `set_timesteps` takes the number of evaluations.

    The model predicts the noise; eta is 0.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of so many evaluations. Raises ValueError for an even number."""
        if num_inference_steps % 2 == 0:
            raise ValueError(f"Heun takes an odd number of evaluations, but got {num_inference_steps}.")
        config = self.config
        steps = (num_inference_steps + 1) // 2
        sequence = distinct_timesteps(steps, config.spacing, config.num_train_timesteps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor([sequence[0], *(t for t in sequence[1:] for _ in range(2))], device=device)
        self._alpha_pairs = alpha_pairs(sequence, self.alphas_cumprod, config.spacing)
        self._step_index = self._begin_index = None
        self._predicted: tuple[torch.Tensor, torch.Tensor] | None = None

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
        """By turns the state at which to evaluate next and the next state, [B, ...]; calls are in sequence order."""
        index = self._step_index or 0
        coefficient = coefficients(*self._alpha_pairs[index // 2])
        dtype = torch.promote_types(sample.dtype, torch.float32)
        start, eps = sample.to(dtype), model_output.to(dtype)
        if self._predicted is None:
            self._predicted = (start, eps)
        else:
            (start, first), self._predicted = self._predicted, None
            eps = (first + eps) / 2
        self._step_index = index + 1
        state = coefficient.update(start, eps).to(sample.dtype)
        # The clean image that this prediction points to.
        alpha = self._alpha_pairs[index // 2][0]
        original = coefficients(alpha, 1.0).update(start, eps).to(sample.dtype)
        return SpacedDDIMOutput(state, original) if return_dict else (state, original)
