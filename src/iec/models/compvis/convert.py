"""From a CompVis checkpoint to a diffusers pipeline folder: what `iec convert` does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iec.models.component import Component
from iec.models.compvis.autoencoder import convert_autoencoder
from iec.models.compvis.checkpoint import (
    Checkpoint,
    Tensors,
    average_named,
    read_checkpoint,
    split_checkpoint,
    split_first_stage,
)
from iec.models.compvis.rules import LAYER, convert, rules_of
from iec.models.compvis.unet import convert_unet, unet_rules
from iec.models.latent import ClassLatentPipeline, LatentPipeline
from iec.models.paper import PaperModel
from iec.storage.files import require_writable, write_folder_atomically

#: What is reported as it begins.
STAGES = ("reading", "UNet", "autoencoder", "writing")


def convert_checkpoint(
    model: PaperModel,
    unet: str | Path,
    output: str | Path,
    autoencoder: str | Path | None = None,
    weights: str | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> LatentPipeline | ClassLatentPipeline:
    """Write the pipeline of `model` into the folder `output`, and return it.

    unet: a safetensors file, a whole checkpoint or a UNet alone. autoencoder: a file of the first stage, needed where
    the first file has none. weights: `ema` or `raw`; None: the model's own choice. on_stage: called with each of
    `STAGES` as it begins.
    Raises ValueError, in one sentence, for a model that is no CompVis checkpoint, files that do not fit it, or an
    output folder that holds something, before anything is written.
    """
    output = Path(output)
    if weights not in (None, "ema", "raw"):
        raise ValueError(f"Unknown weights '{weights}': use ema or raw.")
    if model.autoencoder is None or model.hub is not None:
        raise ValueError(f"{model.title} needs no conversion: diffusers loads it by its name, {model.hub}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"'{output}' exists already and is not an empty folder: name another.")
    require_writable(output.parent)
    on_stage("reading")
    checkpoint = split_checkpoint(read_checkpoint(unet))
    first_stage = checkpoint.first_stage if autoencoder is None else _first_stage_of(autoencoder)
    if not first_stage:
        raise ValueError(f"'{unet}' holds no autoencoder (first_stage_model.*): name its file with --autoencoder.")
    _require_schedule(model, checkpoint.betas)
    scaled = _scaled(model.autoencoder, checkpoint.scale, unet)
    on_stage("UNet")
    named = f"the UNet of {model.title}"
    denoiser = _filled(model.unet, convert_unet(_chosen_weights(model, checkpoint, weights), model.unet, named))
    on_stage("autoencoder")
    vae = _filled(scaled, convert_autoencoder(first_stage, scaled, f"the autoencoder of {model.title}"))
    scheduler = model.scheduler.make()
    pipe: LatentPipeline | ClassLatentPipeline
    if model.class_embedder is None:
        pipe = LatentPipeline(vae, denoiser, scheduler)
    else:
        pipe = ClassLatentPipeline(vae, _class_embedder(model.class_embedder, checkpoint), denoiser, scheduler)
    on_stage("writing")
    write_folder_atomically(output, pipe.save_pretrained)
    return pipe


def _first_stage_of(path: str | Path) -> Tensors:
    """A first stage's own checkpoint, or its part of a whole one."""
    tensors = read_checkpoint(path)
    return split_checkpoint(tensors).first_stage or split_first_stage(tensors)


def _chosen_weights(model: PaperModel, checkpoint: Checkpoint, weights: str | None) -> Tensors:
    """The raw weights or their running average; a UNet without a prefix is taken as it is unless one is asked for."""
    wanted = weights or (model.weights if checkpoint.whole else "raw")
    if wanted == "raw":
        if not checkpoint.unet:
            raise ValueError("The checkpoint holds no raw weights (model.diffusion_model.*): use --weights ema.")
        return checkpoint.unet
    if not checkpoint.average:
        raise ValueError("The checkpoint holds no running average (model_ema.*): use --weights raw.")
    return average_named(checkpoint.average, [rule.source for rule in unet_rules(model.unet, model.unet.shapes())])


def _require_schedule(model: PaperModel, betas: torch.Tensor | None) -> None:
    """Raise ValueError where the checkpoint was trained with other betas; one that has none is not checked."""
    if betas is None:
        return
    expected = model.scheduler.make().alphas_cumprod
    found = torch.cumprod(1 - betas.double(), 0)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4):
        raise ValueError(f"The checkpoint's noise schedule (betas) is not the one of {model.title}.")


def _scaled(config: Component, scale: torch.Tensor | None, path: str | Path) -> Component:
    """The autoencoder with the checkpoint's scaling factor, where it has one."""
    if scale is not None:
        return replace(config, settings={**config.settings, "scaling_factor": scale.item()})
    if "scaling_factor" not in config.settings:
        raise ValueError(f"'{path}' does not say how its latents are scaled (scale_factor): give the whole checkpoint.")
    return config


def _class_embedder(config: Component, checkpoint: Checkpoint) -> Any:
    if not checkpoint.condition:
        raise ValueError("The file holds no class embedder (cond_stage_model.*): give the whole checkpoint.")
    shapes = config.shapes()
    rules = rules_of([("embedding", "embedding", LAYER)], shapes)
    return _filled(config, convert(checkpoint.condition, rules, shapes, "the class embedder"))


def _filled(config: Component, weights: Tensors) -> Any:
    network = config.make_empty()
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
