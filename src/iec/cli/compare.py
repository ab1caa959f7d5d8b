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
    Device,
    DType,
    Json,
    Model,
    Quantize,
    Seed,
    print_json,
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
        typer.Option(help="A corrector, as of iec sample; give it again for each. Default: paper, steps=edges:1/10."),
    ] = None,
    images: Annotated[int, typer.Option("-n", "--images", help="Images per row; at least 10.")] = 500,
    seed: Seed = 0,
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
    from iec.experiments.compare.page import comparison_json, write_comparison
    from iec.experiments.compare.request import DEFAULT_CORRECTIONS, Request
    from iec.experiments.compare.running import run_comparison, workload
    from iec.experiments.compare.tables import contest_table, main_table, verdict_sentence
    from iec.experiments.language import parse_correction, parse_one_technique
    from iec.experiments.plans import Calibration
    from iec.experiments.unconditional_model import load_unconditional, require_spacing
    from iec.models.loading import load_pipeline
    from iec.reports.table import to_rich
    from iec.storage.files import require_writable

    corrections = [parse_correction(text) for text in correct or ()]
    request = Request(
        parse_one_technique(cache, quantize, cachequant),
        tuple(dict.fromkeys(found for found in corrections if found is not None)) if correct else DEFAULT_CORRECTIONS,
        steps,
        images,
        seed,
        batch_size,
        dtype,
        require_spacing(spacing or ("quad" if model is None else "linspace")),
        model,
        Calibration(samples),
        device,
    )
    precision = torch_dtype(dtype)
    if model is None:
        pipe = load_pipeline(None, precision, device)
    else:
        pipe = load_unconditional(model, precision, request.spacing, device)
    unit = request.require_valid(pipe)
    require_writable(output)
    work = workload(request, unit)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    plans = f", and {work.plans} calibrations" if work.plans else ""
    errors.print(
        f"{len(work.candidates) + len(work.families)} rows of {images} images: about {work.evaluations:,.0f} full "
        f"evaluations{plans}, less what is in {results or output / 'measured'} already."
    )
    kept = output / "measured" if results is None else results
    comparison = watched(
        work.images,
        lambda callbacks: run_comparison(request, kept, unit, work, **callbacks),
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
