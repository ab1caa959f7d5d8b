"""`iec calibrate`."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
    Spacing,
    print_json,
    progress,
    staged,
    torch_dtype,
)


def calibrate(
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Sampling steps T that the plan is for.")] = 50,
    quantize: Quantize = None,
    cachequant: CacheQuant = None,
    cache: Cache = None,
    plan: Annotated[Path | None, typer.Option(help="The folder of a technique's plan, to correct it.")] = None,
    correction: Annotated[
        bool, typer.Option("--correction", help="Calibrate a correction at no evaluation, of the model as it deploys.")
    ] = False,
    relaxation: Annotated[
        str | None, typer.Option(help="fitted: fit IEC's relaxation of each step instead, which evaluates again.")
    ] = None,
    history: Annotated[int | None, typer.Option(help="Differences of outputs m; default: chosen, 1 or 2.")] = None,
    bias: Annotated[
        bool | None, typer.Option("--bias/--no-bias", help="A constant per channel; default: chosen.")
    ] = None,
    bands: Annotated[int | None, typer.Option(help="Frequency bands, 1 or 3; default: chosen.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The full-precision model, or self; default: this model without its technique."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Full-precision trajectories to calibrate on.")] = 64,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder of the plan; default: --plan's, or iec-plan.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    spacing: Spacing = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    classes: Classes = None,
    device: Device = "cpu",
    dtype: DType = "float32",
    as_json: Json = False,
) -> None:
    """Calibrate an efficient model, its correction, or both, as a plan; interrupted, the same command goes on.

    Example: iec calibrate --quantize w8a8 --correction --steps 10 -o plan/
    """
    from iec.cli.prompts import prompt_inputs
    from iec.evaluation.class_labels import class_inputs
    from iec.evaluation.per_image import listed
    from iec.experiments.corrections import asked_correction
    from iec.experiments.deploying import Deployment
    from iec.experiments.fits import Fit
    from iec.experiments.language import parse_one_technique
    from iec.experiments.plans import Calibration
    from iec.models.loading import load_pipeline
    from iec.storage.files import folder_bytes

    technique = parse_one_technique(cache, quantize, cachequant)
    if plan is not None and technique is not None:
        raise ValueError("--plan already says what the model is: leave out --cache, --quantize and --cachequant.")
    asked = asked_correction(correction, relaxation=relaxation, history=history, bias=bias, bands=bands)
    if reference is not None and asked is None:
        raise ValueError("--reference belongs to --correction.")
    inputs = prompt_inputs(prompt, prompts)
    pipe = load_pipeline(model, torch_dtype(dtype), device, spacing)
    inputs |= listed(class_inputs(pipe, classes, seed), samples)
    fit = None
    if asked is not None:
        full: Any = reference
        if reference not in (None, "self"):
            full = load_pipeline(reference, torch_dtype(dtype), device, spacing)
        fit = Fit(asked, steps, inputs, samples, batch_size, seed, full)
    deployment = Deployment(plan or technique, fit, steps, Calibration(samples, batch_size, seed), inputs)
    folder = output or plan or Path("iec-plan")
    began = time.perf_counter()
    with progress("") as bar:
        made = deployment.make(pipe, folder, staged(bar))
    seconds = time.perf_counter() - began
    named = {"spacing": spacing, "dtype": None if dtype == "float32" else dtype, "classes": classes, "prompt": prompt}
    command = deployment.sampling_command(
        folder, model, cache, **named, prompts=None if prompts is None else str(prompts)
    )
    result: dict[str, Any] = {
        "plan": str(folder),
        "num_steps": steps,
        "samples": samples,
        "bytes": folder_bytes(folder),
        "seconds": round(seconds, 1),
        "command": command,
    }
    if made is not None:
        result["correction"] = {
            "folder": str(deployment.correction_folder(folder)),
            **asdict(made.report),
            "solver_share": made.report.solver_share,
        }
    if as_json:
        print_json(result)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"The plan for {steps} steps is in {folder}: {result['bytes'] / 1e6:.1f} MB, {seconds:.0f} s. "
        f"Use it with: {command}",
        markup=False,
    )
    if made is not None:
        console.print(f"Its correction: {made.report}.", markup=False)
