"""`iec compare`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from iec.cli.common import (
    BatchSize,
    Cache,
    CacheQuant,
    Classes,
    Device,
    DType,
    Json,
    Model,
    Prompt,
    Prompts,
    Quantize,
    Seed,
    print_json,
    progress,
    torch_dtype,
)
from iec.cli.watching import watched


def compare(
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Sampling steps T.")] = 20,
    cache: Cache = None,
    quantize: Quantize = None,
    cachequant: CacheQuant = None,
    correct: Annotated[
        list[str] | None,
        typer.Option(
            help="A corrector, as of iec sample; again for each. Default: calibrated, adams, paper, relaxation=fitted."
        ),
    ] = None,
    images: Annotated[int, typer.Option("-n", "--images", help="Images per row; at least 10.")] = 500,
    seed: Seed = 0,
    prompt: Prompt = None,
    prompts: Prompts = None,
    classes: Classes = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Real images of the same size: a folder or npz. Without it, CIFAR-10's test set."),
    ] = None,
    features: Annotated[
        str, typer.Option(help="What sees the images: cifar (32x32) or inception (any size; extra fid).")
    ] = "cifar",
    batch_size: BatchSize = 32,
    dtype: DType = "float32",
    spacing: Annotated[
        str | None, typer.Option(help="quad, uniform or linspace; quad for the embedded model, else linspace.")
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Full-precision trajectories behind each calibrated plan, of which every rival has one.")
    ] = 64,
    device: Device = "cpu",
    output: Annotated[Path, typer.Option("-o", "--output", help="Where compare.md, .json, .svg and .html go.")] = Path(
        "iec-compare"
    ),
    results: Annotated[
        Path | None,
        typer.Option(help="Where sampled rows and plans are kept; default: measured/ in the output folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Correction against every rival of the same cost: table, plot and verdict; interrupted, it goes on row by row.

    Example: iec compare --cache deepcache:5 --steps 20 -n 500 -o compared/
    """
    import torch

    from iec.cli.prompts import prompt_inputs
    from iec.evaluation.class_labels import class_inputs
    from iec.evaluation.image_sets import TensorImages
    from iec.evaluation.metrics.evaluate import load_extractor
    from iec.evaluation.metrics.reference import open_reference
    from iec.experiments.compare.page import comparison_json, write_comparison
    from iec.experiments.compare.request import DEFAULT_CORRECTIONS, Request
    from iec.experiments.compare.running import run_comparison, workload
    from iec.experiments.compare.tables import contest_table, main_table, verdict_sentence
    from iec.experiments.compared_model import load_compared, require_spacing
    from iec.experiments.language import parse_correction, parse_one_technique
    from iec.experiments.plans import Calibration
    from iec.experiments.rows import Judge
    from iec.models.image_shape import image_shape
    from iec.models.loading import load_pipeline
    from iec.reports.table import to_rich
    from iec.storage.files import require_writable

    corrections = [parse_correction(text) for text in correct or ()]
    technique, precision = parse_one_technique(cache, quantize, cachequant), torch_dtype(dtype)
    grid = require_spacing(spacing or ("quad" if model is None else "linspace"))
    inputs = prompt_inputs(prompt, prompts)
    extractor = load_extractor(features, device)
    pipe = load_pipeline(None, precision, device) if model is None else load_compared(model, precision, grid, device)
    request = Request(
        technique,
        tuple(dict.fromkeys(found for found in corrections if found is not None)) if correct else DEFAULT_CORRECTIONS,
        steps,
        images,
        seed,
        batch_size,
        dtype,
        grid,
        model,
        Calibration(samples),
        device,
        inputs | class_inputs(pipe, classes, seed),
        features,
    )
    shape = image_shape(pipe)
    extractor.require_shape(shape)
    source = open_reference(reference, TensorImages(torch.zeros(1, *shape, dtype=torch.uint8), "the model"), extractor)
    if not source.has_features:
        raise ValueError(f"'{source.name}' holds statistics alone, and the verdict needs the real images themselves.")
    unit = request.require_valid(pipe)
    require_writable(output)
    work = workload(request, unit)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    plans = f", and {work.plans} calibrations" if work.plans else ""
    errors.print(
        f"{len(work.candidates) + len(work.families)} rows of {images} images: about {work.evaluations:,.0f} full "
        f"evaluations{plans}, less what is in {results or output / 'measured'} already."
    )
    with progress("images", shown=source.images is not None) as bar:
        task = bar.add_task("reference", total=None if source.images is None else len(source.images))
        real = source.measure(extractor, 250, lambda count: bar.advance(task, count))
    kept = output / "measured" if results is None else results
    comparison = watched(
        work.images,
        lambda callbacks: run_comparison(
            request, kept, unit, work, lambda images: Judge(images, extractor, real), **callbacks
        ),
    )
    paths = write_comparison(comparison, output)
    if as_json:
        print_json(comparison_json(comparison))
        return
    # Output that goes into a file has no width of its own: give the table room.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 190)
    console.print(to_rich(main_table(comparison)))
    console.print(to_rich(contest_table(comparison)))
    console.print(f"\n{verdict_sentence(comparison)}\n\nPage: {paths['html']}", soft_wrap=True)
