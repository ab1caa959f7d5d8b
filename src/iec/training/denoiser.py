"""Fit the embedded denoiser: epsilon prediction, AdamW, an exponential moving average, exact resumption.

The training state is one safetensors file and one JSON file. Every random choice of iteration k is drawn
from a generator seeded by (seed, k), so an interrupted run continues as if it had never stopped.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch.nn import functional

from iec.storage.files import write_atomically, write_folder_atomically, write_json
from iec.training.data import ImageSet

#: The embedded model's architecture: 4.3 M parameters, attention at 8x8.
ARCHITECTURE: Mapping[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 64,
    "norm_num_groups": 8,
}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the learning rate warms up, stays, and decays linearly over the last `decay` of the run."""

    iterations: int = 20_000
    batch_size: int = 128
    learning_rate: float = 4e-4
    warmup: int = 200
    decay: float = 0.3
    ema_decay: float = 0.9995
    gradient_clip: float = 1.0
    seed: int = 0
    autocast: bool = True

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, but is {self.learning_rate}.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is the fraction of the run that decays, in [0, 1], but is {self.decay}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), but is {self.ema_decay}.")

    def learning_rate_at(self, iteration: int) -> float:
        """The learning rate of one iteration."""
        remaining = (self.iterations - iteration) / max(1.0, self.decay * self.iterations)
        return self.learning_rate * min(1.0, (iteration + 1) / self.warmup, max(remaining, 0.01))


@dataclass
class TrainingState:
    """Everything that a later session needs to go on: the weights, their average, and AdamW's moments."""

    model: UNet2DModel
    average: UNet2DModel
    optimizer: torch.optim.AdamW
    iteration: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def noise_schedule() -> DDIMScheduler:
    """The embedded model's scheduler: 1000 linear betas from 1e-4 to 2e-2, no clipping."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def begin(config: TrainingConfig, start: str | Path | None = None) -> TrainingState:
    """A fresh training state: random weights, or the weights of the diffusers folder `start`."""
    torch.manual_seed(config.seed)
    model = UNet2DModel(**ARCHITECTURE) if start is None else DDIMPipeline.from_pretrained(start).unet
    model = model.float().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    return TrainingState(model, average, _optimizer(model, config))


def train(
    state: TrainingState,
    data: ImageSet,
    config: TrainingConfig,
    on_iteration: Callable[[TrainingState, float], None] = lambda state, loss: None,
) -> TrainingState:
    """Train until `config.iterations`; `on_iteration(state, loss)` is called after each one."""
    alphas_cumprod = noise_schedule().alphas_cumprod
    model = state.model.train()
    while state.iteration < config.iterations:
        started = time.monotonic()
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(state.iteration)
        images, timesteps, noise = _batch(data, config, state.iteration)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.autocast):
            loss = _loss(model, images, timesteps, noise, alphas_cumprod).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        _update_average(state, config)
        state.iteration += 1
        state.seconds += time.monotonic() - started
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"The training loss became non-finite at iteration {state.iteration}: lower the rate.")
        state.losses.append(value)
        on_iteration(state, value)
    return state


def held_out_loss(
    model: UNet2DModel, data: ImageSet, levels: int = 10, images: int = 1000, seed: int = 0
) -> Iterator[tuple[tuple[int, int], float]]:
    """Mean squared error of the predicted noise per tenth of the timesteps, on `images` random held-out images."""
    alphas_cumprod = noise_schedule().alphas_cumprod
    generator = torch.Generator().manual_seed(seed)
    chosen = _normalize(data.images[torch.randperm(len(data), generator=generator)[:images]])
    model = model.eval()
    edges = torch.linspace(0, 1000, levels + 1).long().tolist()
    for low, high in pairwise(edges):
        timesteps = torch.randint(low, high, (len(chosen),), generator=generator)
        noise = torch.randn(chosen.shape, generator=generator)
        with torch.inference_mode():
            parts = [
                _loss(model, chosen[i : i + 100], timesteps[i : i + 100], noise[i : i + 100], alphas_cumprod)
                for i in range(0, len(chosen), 100)
            ]
        yield (low, high), torch.cat(parts).mean().item()


def save_state(state: TrainingState, folder: str | Path, config: TrainingConfig) -> None:
    """Save all that resumption needs in `folder`; the tensors first, then the JSON that names them."""
    folder = Path(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in state.model.named_parameters():
        moments = state.optimizer.state.get(parameter, {})
        tensors[f"model.{name}"] = parameter.detach().contiguous()
        tensors[f"average.{name}"] = state.average.get_parameter(name).detach().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in moments:
                tensors[f"{moment}.{name}"] = moments[moment].contiguous()
    metadata = {"iteration": str(state.iteration)}
    write_atomically(folder / "state.safetensors", lambda path: save_file(tensors, path, metadata=metadata))
    settings = {"config": asdict(config), "unet": dict(state.model.config)}
    progress = {"iteration": state.iteration, "seconds": round(state.seconds, 1), "losses": state.losses}
    write_json(folder / "state.json", {**settings, **progress})


def load_state(folder: str | Path, config: TrainingConfig) -> TrainingState:
    """Load what `save_state` wrote; the batch size and the seed must be those it was trained with."""
    folder = Path(folder)
    if not (folder / "state.json").is_file() or not (folder / "state.safetensors").is_file():
        raise ValueError(f"There is no training state in '{folder}': it needs state.json and state.safetensors.")
    saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name in ("batch_size", "seed"):
        if saved["config"][name] != getattr(config, name):
            raise ValueError(
                f"The training in '{folder}' has {name} {saved['config'][name]}, not {getattr(config, name)}: "
                "resume with the same value, or train into another folder."
            )
    tensors = load_file(folder / "state.safetensors")
    model = UNet2DModel(**{k: v for k, v in saved["unet"].items() if not k.startswith("_")})
    model = model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = _optimizer(model, config)
    iteration = saved["iteration"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            average.get_parameter(name).copy_(tensors[f"average.{name}"])
            if f"exp_avg.{name}" in tensors:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(iteration)),
                    "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg.{name}"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq.{name}"]),
                }
    return TrainingState(model, average, optimizer, iteration, saved["seconds"], saved["losses"])


def export(state: TrainingState, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the averaged weights as a diffusers folder that plain `DDIMPipeline.from_pretrained` loads."""
    unet = copy.deepcopy(state.average).to(memory_format=torch.contiguous_format)
    torch.nn.Module.to(unet, dtype)  # past diffusers' own `to`, which warns of modules that this network lacks
    pipeline = DDIMPipeline(unet=unet, scheduler=noise_schedule())
    write_folder_atomically(folder, lambda path: pipeline.save_pretrained(path, safe_serialization=True))


def _optimizer(model: UNet2DModel, config: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )


def _normalize(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def _batch(data: ImageSet, config: TrainingConfig, iteration: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch of one iteration, a function of (seed, iteration) alone."""
    epoch_length = max(1, len(data) // config.batch_size)
    epoch, position = divmod(iteration, epoch_length)
    shuffle = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(data), generator=shuffle)
    chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
    generator = torch.Generator().manual_seed((config.seed + 1) * 1_000_000_007 + iteration)
    images = _normalize(data.images[chosen])
    flip = torch.rand(len(images), generator=generator) < 0.5
    images[flip] = images[flip].flip(-1)
    timesteps = torch.randint(0, 1000, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return images, timesteps, noise


def _loss(
    model: UNet2DModel,
    images: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """The squared error of the predicted noise, per sample."""
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = (alpha.sqrt() * images + (1 - alpha).sqrt() * noise).to(memory_format=torch.channels_last)
    predicted = model(noisy, timesteps).sample
    return functional.mse_loss(predicted.float(), noise, reduction="none").flatten(1).mean(1)


@torch.no_grad()
def _update_average(state: TrainingState, config: TrainingConfig) -> None:
    # A young average follows the weights closely, so that it never remembers the start for long.
    decay = min(config.ema_decay, (1 + state.iteration) / (10 + state.iteration))
    averages, weights = list(state.average.parameters()), list(state.model.parameters())
    torch._foreach_lerp_(averages, weights, 1 - decay)
