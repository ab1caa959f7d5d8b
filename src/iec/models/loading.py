"""Loading pipelines: the embedded model, a folder, or a hub name; safetensors only."""

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

# The networks of our own are imported with the pipelines: diffusers finds a folder's classes only once they are loaded.
from iec.models.fixed_heads import FixedHeadsUNet2DModel  # noqa: F401
from iec.models.latent import ClassLatentPipeline, LatentPipeline
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler

#: What `--spacing` may say; `scheduler` leaves the pipeline's own scheduler untouched.
SPACING_CHOICES = ("quad", "uniform", "linspace", "scheduler")
_OURS = {kind.__name__: kind for kind in (ClassLatentPipeline, LatentPipeline, UnconditionalPipeline)}
_PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def load_pipeline(
    model: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    spacing: str | None = None,
) -> DiffusionPipeline:
    """The pipeline of `model`: None for the embedded CIFAR-10 model, a diffusers folder, or a hub name.

    spacing: `quad`, `uniform` or `linspace` replace the scheduler by DDIM with that spacing, `scheduler` keeps the
    pipeline's own; None means `quad` for the embedded model and `scheduler` for any other.
    Raises ValueError, in one sentence, where the model is missing, is no diffusers pipeline, or holds only pickled
    weights.
    """
    if spacing is not None and spacing not in SPACING_CHOICES:
        raise ValueError(f"Unknown spacing '{spacing}': use {', '.join(SPACING_CHOICES)}.")
    chosen = usable_device(device)
    if model is None:
        with as_file(files("iec.models") / "embedded" / "denoiser") as folder:
            stored = _from_pretrained(folder, dtype)
        # channels_last is the faster layout of a convolutional network on a CPU.
        pipe = UnconditionalPipeline(stored.unet.to(memory_format=torch.channels_last), stored.scheduler)
        spacing = spacing or "quad"
    else:
        pipe = _from_pretrained(_checked(model), dtype)
        spacing = spacing or "scheduler"
    if spacing != "scheduler":
        pipe.scheduler = SpacedDDIMScheduler.from_scheduler(pipe.scheduler, spacing)
    pipe.set_progress_bar_config(disable=True)
    return pipe if chosen.type == "cpu" else pipe.to(chosen)


def usable_device(device: str) -> torch.device:
    """The torch device of that name. Raises ValueError where there is none, or none that works here."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device '{device}' cannot be used here: {reason}") from error
    return chosen


def _checked(model: str | Path) -> str | Path:
    """A diffusers folder with safetensors, or a hub name."""
    folder = Path(model)
    if folder.is_file():
        raise ValueError(f"'{model}' is a file: give the folder that a pipeline's save_pretrained wrote.")
    if not folder.is_dir():
        if _is_hub_name(str(model)):
            return str(model)
        raise ValueError(f"There is no model folder '{model}'.")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"'{model}' is no diffusers model: it has no model_index.json.")
    if not any(folder.rglob("*.safetensors")):
        pickled = next((file for pattern in _PICKLED for file in folder.rglob(pattern)), None)
        if pickled is not None:
            raise ValueError(
                f"'{model}' holds only pickled weights ({pickled.name}), which are never loaded: "
                "save it again with save_pretrained(..., safe_serialization=True)."
            )
        raise ValueError(f"'{model}' holds no weights: there is no .safetensors file in it.")
    return folder


def _is_hub_name(model: str) -> bool:
    return model.count("/") <= 1 and not model.startswith((".", "/", "~")) and not model.endswith("/")


def _from_pretrained(model: str | Path, dtype: torch.dtype) -> DiffusionPipeline:
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said once, by the error below
    try:
        return _kind_of(model).from_pretrained(model, dtype=dtype, use_safetensors=True)
    except Exception as error:
        # diffusers raises many kinds here; whatever it was, the model cannot be used, and the first sentence says why.
        reason = str(error).strip().split("\n")[0].split(". ")[0][:200] or type(error).__name__
        if isinstance(model, Path):
            raise ValueError(f"'{model}' could not be loaded as a diffusers pipeline: {reason}.") from error
        raise ValueError(f"'{model}' is no folder here and could not be loaded from the hub: {reason}.") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _kind_of(model: str | Path) -> Any:
    """The class to load `model` with: diffusers finds its own pipelines by name, but not ours."""
    if not isinstance(model, Path):
        return DiffusionPipeline
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    return _OURS.get(index.get("_class_name"), DiffusionPipeline)
