"""`iec evaluate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from iec.cli.common import Device, Json, print_json, progress

if TYPE_CHECKING:
    from iec.evaluation.metrics.evaluate import Evaluation
    from iec.reports.table import Table


def evaluate(
    images: Annotated[Path, typer.Argument(help="A folder of PNG or JPEG files, or an npz with arr_0.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="Real images, or an npz of their statistics; without it, the CIFAR-10 test set."),
    ] = None,
    full_precision: Annotated[
        Path | None, typer.Option(help="The full-precision images of the same seeds, for PSNR and SSIM.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="fd, kd, sfd, is, pr, clip, psnr, ssim, lpips, joined by +.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="cifar (32x32, always there) or inception (FID, KID, IS; extra fid).")
    ] = "cifar",
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line, for the CLIP score.")] = None,
    clip_model: Annotated[str | None, typer.Option(help="A CLIP model of transformers; without it, ViT-g/14.")] = None,
    save_statistics: Annotated[
        Path | None, typer.Option(help="Write the images' mu, sigma, mu_s, sigma_s to this npz, as a reference.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch; changes nothing but rounding.")] = 250,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure images against real ones, and against the full-precision images of the same seeds.

    Example: iec evaluate out/ --full-precision full/ --metrics fd+kd+psnr
    """
    from iec.cli.prompts import prompt_inputs
    from iec.evaluation.image_sets import open_images, write_statistics
    from iec.evaluation.metrics.clip import DEFAULT_MODEL, ClipScore
    from iec.evaluation.metrics.evaluate import GROUND_TRUTH, choose_metrics, load_extractor, require_known
    from iec.evaluation.metrics.evaluate import evaluate as evaluated
    from iec.evaluation.metrics.lpips import Lpips
    from iec.evaluation.metrics.reference import open_reference
    from iec.reports.table import to_rich

    named = None if metrics is None else metrics.split("+")
    require_known(named)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but is {batch_size}.")
    extractor = load_extractor(features, device)
    texts = prompt_inputs(None, prompts).get("prompt", [])
    ours = open_images(images)
    wants_reference = named is None or not {*named}.isdisjoint({*GROUND_TRUTH} - {"is"})
    theirs = open_reference(reference, ours, extractor) if wants_reference or reference is not None else None
    exact = None if full_precision is None else open_images(full_precision)
    chosen = choose_metrics(named, len(ours), theirs, exact is not None, bool(texts))
    clip = ClipScore.load(clip_model or DEFAULT_MODEL, device) if "clip" in chosen else None
    lpips = Lpips(device=device) if "lpips" in chosen else None
    with progress("images") as bar:
        task = bar.add_task("opening", total=None)
        result = evaluated(
            ours, chosen, extractor, theirs, exact, texts, clip, lpips, batch_size,
            on_stage=lambda stage, count: bar.reset(task, description=stage, total=count),
            on_progress=lambda count: bar.advance(task, count),
        )  # fmt: skip
    if save_statistics is not None:
        if result.features is None:
            raise ValueError("--save-statistics needs a metric over features, such as fd.")
        write_statistics(save_statistics, result.features.statistics())
    if as_json:
        print_json(result.to_dict())
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(to_rich(evaluation_table(result)))


def evaluation_table(result: "Evaluation") -> "Table":
    """The figures as a table, their warnings below it."""
    from iec.reports.table import Column, Row, Table

    columns = (
        Column("figure", "left"),
        Column("value"),
        Column("95 % interval"),
        Column("images"),
        Column("better", "left"),
    )
    rows = tuple(
        Row((
            figure.name,
            f"{figure.estimate.value:.4g}",
            f"[{figure.estimate.low:.4g}, {figure.estimate.high:.4g}]",
            f"{figure.images:,}",
            figure.better,
        ))
        for figure in result.figures
    )  # fmt: skip
    against = {"Reference": result.reference, "Full precision": result.full_precision}
    notes = [f"{what}: {name}." for what, name in against.items() if name is not None]
    return Table(
        result.images, columns, rows, (*notes, *(figure.warning for figure in result.figures if figure.warning))
    )
