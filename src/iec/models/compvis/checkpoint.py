"""A CompVis latent-diffusion checkpoint, read from safetensors and taken apart by what its tensors belong to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

Tensors = Mapping[str, torch.Tensor]

_RAW, _AVERAGE = "model.diffusion_model.", "model_ema."
_FIRST_STAGE, _CONDITION, _LOSS = "first_stage_model.", "cond_stage_model.", "loss."
#: Of the running average itself, and what follows from `betas`.
_BOOKKEEPING = {"model_ema.decay", "model_ema.num_updates", "logvar", "log_one_minus_alphas_cumprod"}
_FROM_BETAS = ("alphas_cumprod", "sqrt_", "posterior_", "lvlb_weights")
_PICKLED = {".ckpt", ".bin", ".pt", ".pth", ".pkl"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint, each under its own module's names; empty where the checkpoint lacks it.

    unet: the raw weights. average: their running average, under its own flat names. first_stage, condition: the
    autoencoder, and the class embedder. scale: the factor of the latents, of one element. betas: [1000].
    whole: whether it is a checkpoint with parts, not a UNet alone.
    """

    unet: Tensors
    average: Tensors = field(default_factory=dict)
    first_stage: Tensors = field(default_factory=dict)
    condition: Tensors = field(default_factory=dict)
    scale: torch.Tensor | None = None
    betas: torch.Tensor | None = None
    whole: bool = True


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises ValueError, in one sentence, for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'.")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix in _PICKLED or start.startswith(_PICKLE_STARTS):
        raise ValueError(
            f"'{path}' is a pickled checkpoint, which is never loaded since that can run any code: on a machine that "
            "you trust, rewrite it as safetensors with the few lines in docs/paper-models.md."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file, or is damaged: {error}.") from error


def split_checkpoint(tensors: Tensors) -> Checkpoint:
    """Take a checkpoint apart; one that holds a UNet alone may name its tensors without a prefix.

    Raises ValueError where a tensor belongs to nothing that is known.
    """
    prefixes = (_RAW, _AVERAGE, _FIRST_STAGE, _CONDITION)
    if not any(name.startswith(prefixes) for name in tensors):
        return Checkpoint(tensors, whole=False)
    strays = [name for name in tensors if not name.startswith(prefixes) and not _is_of_the_schedule(name)]
    if strays:
        raise ValueError(f"'{strays[0]}' belongs to no part of a latent-diffusion checkpoint.")
    average = {name: tensor for name, tensor in tensors.items() if name not in _BOOKKEEPING}
    return Checkpoint(
        _below(_RAW, tensors),
        _below(_AVERAGE, average),
        split_first_stage(_below(_FIRST_STAGE, tensors)),
        _below(_CONDITION, tensors),
        tensors.get("scale_factor"),
        tensors.get("betas"),
    )


def split_first_stage(tensors: Tensors) -> Tensors:
    """An autoencoder's weights, from its part of a checkpoint or a checkpoint of its own, without its training loss."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_LOSS)}


def average_named(average: Tensors, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """A running average under the names of the UNet's tensors; the average's own names lack the dots.

    What has no counterpart keeps its own name.
    """
    by_flat_name = {f"diffusion_model{name.replace('.', '')}": name for name in names}
    return {by_flat_name.get(flat, flat): tensor for flat, tensor in average.items()}


def _below(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _is_of_the_schedule(name: str) -> bool:
    return name in {"betas", "scale_factor"} | _BOOKKEEPING or name.startswith(_FROM_BETAS)
