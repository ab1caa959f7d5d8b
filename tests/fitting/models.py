"""Pipelines whose calibration can be checked by other means."""

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

from iec.method import current_clock
from iec.method.noise import CALIBRATION_OFFSET, image_generator
from iec.runtime import SpacedDDIMScheduler


class NoisePipeline(DiffusionPipeline):
    """From noise [B, 3, size, size] to a state, in the dtype of its network; nothing is done to either."""

    def __init__(self, unet, scheduler, size=8):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.size = size
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, batch_size=1, generator=None, num_inference_steps=10, guidance_scale=1.0, begin=0):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.stack([torch.randn(3, self.size, self.size, generator=one) for one in generator])
        x = x.to(next(self.unet.parameters()).dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps[begin:]:
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            x = self.scheduler.step(guidance_scale * self.unet(scaled, t), t, x, return_dict=False)[0]
        return (x,)


class Gaussian(nn.Module):
    """The exact output for independent Gaussian pixels of variances that span two orders of magnitude.

    levels: (timestep) -> signal, noise; it predicts the noise, or for flow matching the velocity.
    """

    def __init__(self, levels, flow=False, size=8):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        variances = 10 ** (2 * torch.rand(3, size, size, generator=generator, dtype=torch.float64) - 2)
        self.variances = nn.Parameter(variances, requires_grad=False)
        self.levels, self.flow = levels, flow

    def forward(self, x, t):
        signal, noise = self.levels(float(t))
        total = signal**2 * self.variances + noise**2
        expected_noise = noise * x / total
        return expected_noise - signal * self.variances * x / total if self.flow else expected_noise

    def solution(self, x, signal, noise):
        """Where the ODE leads from a state x at these levels: the clean state."""
        return x * (self.variances / (signal**2 * self.variances + noise**2)).sqrt()


class Small(nn.Module):
    """A nonlinear network that mixes channels and neighbours; `calls` counts its evaluations."""

    calls = 0

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3, generator=generator, dtype=dtype) / 5, requires_grad=False)

    def forward(self, x, t):
        self.calls += 1
        mixed = nn.functional.conv2d(x, self.weight, padding=1)
        return torch.tanh(0.7 * x + 0.5 * mixed + 0.2 * torch.sin(2 * x + float(t) / 300))


class Shifted(Small):
    """An output that is wrong by one constant per channel."""

    constants = torch.tensor([0.05, -0.02, 0.1], dtype=torch.float64)

    def forward(self, x, t):
        return super().forward(x, t) + self.constants.view(3, 1, 1).to(x.dtype)


class Lagging(Small):
    """An output g_i that lags behind the true one: h_i = g_i + share (g_i - g_{i-1})."""

    share = 0.3

    def forward(self, x, t):
        storage, h = current_clock().storage, super().forward(x, t)
        g = h if "last" not in storage else (h + self.share * storage["last"]) / (1 + self.share)
        storage["last"] = g
        return g


def ddim(**settings):
    return DDIMScheduler(clip_sample=False, beta_end=2e-2, **settings)


def quad(**settings):
    return SpacedDDIMScheduler(drop_duplicates=True, **settings)


def draw(pipe, count=8, seed=0, steps=10, **call):
    return pipe(count, [image_generator(seed, i) for i in range(count)], steps, **call)[0]


def trajectories(count, seed=0):
    """The generators of the calibration's trajectories."""
    return [image_generator(CALIBRATION_OFFSET + seed, i) for i in range(count)]


def gaussian_pipe(scheduler):
    """Of a variance-preserving scheduler, in float64."""
    alphas = scheduler.alphas_cumprod.double()
    return NoisePipeline(Gaussian(lambda t: (alphas[int(t)] ** 0.5, (1 - alphas[int(t)]) ** 0.5)), scheduler)


def flow_pipe(scheduler):
    return NoisePipeline(Gaussian(lambda t: (1 - t / 1000, t / 1000), flow=True), scheduler)


def size(tensor):
    return tensor.double().norm().item()
