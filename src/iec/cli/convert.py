"""`iec convert`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from iec.cli.common import Json, print_json, progress


def convert(
    unet: Annotated[Path, typer.Option(help="A CompVis checkpoint as safetensors: the whole, or its UNet alone.")],
    model: Annotated[str, typer.Option(help="Which of the paper's models it is: churches, bedrooms or imagenet.")],
    autoencoder: Annotated[
        Path | None, typer.Option(help="A safetensors file of the first stage, where the other file has none.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="ema (the running average) or raw; without it, what the paper samples.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder of the pipeline; without it, iec-MODEL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rewrite a CompVis latent-diffusion checkpoint as a diffusers pipeline, which every other command takes.

    Example: iec convert --unet churches.safetensors --model churches -o churches/
    """
    from iec.models.compvis.convert import STAGES, convert_checkpoint
    from iec.models.paper import paper_model
    from iec.storage.files import folder_bytes

    chosen = paper_model(model)
    output = output or Path(f"iec-{model}")
    with progress("stages") as bar:
        task = bar.add_task("", total=len(STAGES))

        def on_stage(stage: str) -> None:
            bar.update(task, description=stage.ljust(11), completed=STAGES.index(stage))

        pipe = convert_checkpoint(chosen, unet, output, autoencoder, weights, on_stage)
        bar.update(task, completed=len(STAGES))
    result: dict[str, Any] = {
        "model": model,
        "folder": str(output),
        "unet_parameters": sum(parameter.numel() for parameter in pipe.unet.parameters()),
        "scaling_factor": pipe.vae.config.scaling_factor,
        "bytes": folder_bytes(output),
    }
    if as_json:
        print_json(result)
        return
    Console(highlight=False, soft_wrap=True).print(
        f"{chosen.title} is in {output}: a UNet of {result['unet_parameters'] / 1e6:.1f} million parameters, "
        f"{result['bytes'] / 1e6:.1f} MB in all."
    )
