"""`iec sample`."""

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
    Prompt,
    Quantize,
    Seed,
    Spacing,
    print_json,
    progress,
    torch_dtype,
)


def sample(
    model: Model = None,
    images: Annotated[int, typer.Option("-n", "--images", help="How many images.")] = 64,
    steps: Annotated[int, typer.Option(help="Sampling steps T.")] = 50,
    cache: Cache = None,
    quantize: Quantize = None,
    cachequant: CacheQuant = None,
    plan: Annotated[Path | None, typer.Option(help="The folder of a plan that iec calibrate made.")] = None,
    correct: Annotated[
        str | None, typer.Option(help="paper, released, or settings such as relaxation=0.5,steps=edges:1/10.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the PNGs and sampling.json.")] = Path(
        "iec-samples"
    ),
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    spacing: Spacing = None,
    prompt: Prompt = None,
    device: Device = "cpu",
    dtype: DType = "float32",
    as_json: Json = False,
) -> None:
    """Sample images into a folder; interrupted at any moment, the same command goes on to the same images.

    Example: iec sample -n 64 --steps 50 --cache deepcache:5 --correct relaxation=0.5,steps=edges:1/10 -o out/
    """
    from iec.evaluation.sampling import require_sampling, sample_to_folder
    from iec.experiments.language import parse_correction, parse_one_technique
    from iec.experiments.plans import planned
    from iec.models.loading import load_pipeline

    technique, correction = parse_one_technique(cache, quantize, cachequant), parse_correction(correct)
    if plan is not None and technique is not None:
        raise ValueError("--plan already says what the model is: leave out --cache, --quantize and --cachequant.")
    pipe = load_pipeline(model, torch_dtype(dtype), device, spacing)
    require_sampling(pipe, images, steps, seed, batch_size, correction, prompt)
    with progress("images") as bar:
        task = bar.add_task("sampling", total=images)
        if plan is None:

            def on_calibration(done: int, total: int) -> None:
                bar.update(task, description=f"calibrating, {done} of {total} trajectories")

            inputs = {} if prompt is None else {"prompt": prompt}
            used = planned(pipe, technique, steps, output / "plan", inputs, on_calibration)
            bar.update(task, description="sampling")
        else:
            used = plan
        folder = sample_to_folder(
            pipe,
            output,
            images,
            steps,
            model=model or "embedded",
            spacing=spacing or ("scheduler" if model else "quad"),
            seed=seed,
            batch_size=batch_size,
            technique=used,
            correction=correction,
            prompt=prompt,
            on_start=lambda done: bar.advance(task, done),
            on_batch=lambda batch: bar.advance(task, len(batch.images)),
        )
    record = folder.to_dict()
    if as_json:
        print_json(record)
        return
    cost = record["cost"]
    per_image = f", cost {cost['cost_per_image']} full evaluations" if "cost_per_image" in cost else ""
    Console().print(
        f"{record['images']} images in {folder.path}: {cost['full_evaluations']} full and "
        f"{cost['cached_evaluations']} cached evaluations per image{per_image}, {cost['seconds']} s, "
        f"peak memory {cost['peak_memory_mb']} MB.",
        highlight=False,
        soft_wrap=True,
    )
