"""`iec calibrate`."""

import time
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
    torch_dtype,
)


def calibrate(
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Sampling steps T that the plan is for.")] = 50,
    quantize: Quantize = None,
    cachequant: CacheQuant = None,
    cache: Cache = None,
    samples: Annotated[int, typer.Option(help="Full-precision trajectories to calibrate on.")] = 64,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the plan.")] = Path("iec-plan"),
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
    """Calibrate an efficient model and save it as a plan; interrupted, the same command goes on.

    Example: iec calibrate --cachequant 5,w8a8 --steps 100 -o plan/
    """
    from iec.cli.prompts import prompt_inputs
    from iec.efficient import calibrate as calibrated
    from iec.evaluation.class_labels import class_inputs
    from iec.evaluation.per_image import listed
    from iec.experiments.language import parse_one_technique
    from iec.models.loading import load_pipeline
    from iec.storage.files import folder_bytes, require_writable

    technique = parse_one_technique(cache, quantize, cachequant)
    if technique is None:
        raise ValueError(
            "Nothing to calibrate: give --quantize, --cachequant, or --cache with schedule=dps or with forecast."
        )
    inputs = prompt_inputs(prompt, prompts)
    pipe = load_pipeline(model, torch_dtype(dtype), device, spacing)
    inputs |= listed(class_inputs(pipe, classes, seed), samples)
    require_writable(output.parent)
    began = time.perf_counter()
    with progress("trajectories") as bar:
        task = bar.add_task("calibrating", total=None)
        plan = calibrated(
            pipe,
            technique,
            steps,
            samples,
            batch_size,
            seed,
            inputs,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            checkpoint=output.with_name(f".{output.name}-calibration"),
        )
    plan.save_pretrained(output)
    seconds = time.perf_counter() - began
    result: dict[str, Any] = {
        "plan": str(output),
        "num_steps": steps,
        "samples": samples,
        "bytes": folder_bytes(output),
        "seconds": round(seconds, 1),
    }
    if as_json:
        print_json(result)
        return
    Console(highlight=False, soft_wrap=True).print(
        f"The plan for {steps} steps is in {output}: {result['bytes'] / 1e6:.1f} MB, {seconds:.0f} s. "
        f"Use it with: iec sample --plan {output} --steps {steps}"
    )
