"""`iec sample`."""

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
        str | None,
        typer.Option(
            help="At no evaluation: adams, calibrated (fitted first), or the folder of a plan. By evaluating again: "
            "paper, released, stable_diffusion, relaxation=fitted, or settings: relaxation=0.5,steps=edges:1/10."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the PNGs and sampling.json.")] = Path(
        "iec-samples"
    ),
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    spacing: Spacing = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    classes: Classes = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of this process; part of what decides the last bits.")
    ] = None,
    device: Device = "cpu",
    dtype: DType = "float32",
    as_json: Json = False,
) -> None:
    """Sample images into a folder; interrupted at any moment, the same command goes on to the same images.

    Started by accelerate launch or torchrun, every process takes its part of the batches.

    Example: iec sample -n 64 --steps 50 --cache deepcache:5 --correct relaxation=0.5,steps=edges:1/10 -o out/
    """
    import torch

    from iec.cli.prompts import prompt_inputs
    from iec.evaluation.class_labels import class_inputs
    from iec.evaluation.per_image import listed
    from iec.evaluation.processes import Share
    from iec.evaluation.sampling import require_sampling, sample_to_folder
    from iec.experiments.correction_choice import parse_correction_or_folder
    from iec.experiments.corrections import FittedCorrection
    from iec.experiments.language import parse_one_technique
    from iec.experiments.prepared import PlanFolders, prepared
    from iec.models.loading import load_pipeline

    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, but is {threads}.")
        torch.set_num_threads(threads)
    share = Share.of_environment()
    inputs = prompt_inputs(prompt, prompts)

    technique, correction = parse_one_technique(cache, quantize, cachequant), parse_correction_or_folder(correct)
    if plan is not None and technique is not None:
        raise ValueError("--plan already says what the model is: leave out --cache, --quantize and --cachequant.")
    pipe = load_pipeline(model, torch_dtype(dtype), share.device(device), spacing)
    inputs |= class_inputs(pipe, classes, seed)
    known = None if isinstance(correction, FittedCorrection) else correction
    require_sampling(pipe, images, steps, seed, batch_size, known, inputs)
    with progress("images", shown=share.rank == 0) as bar:
        task = bar.add_task("sampling", total=images)
        used, enabled = prepared(
            pipe,
            plan or technique,
            correction,
            steps,
            PlanFolders.inside(output),
            listed(inputs, 64),
            lambda stage, done, total: bar.update(task, description=f"{stage}, {done} of {total}"),
        )
        bar.reset(task, description="sampling", total=images)
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
            correction=enabled,
            inputs=inputs,
            share=share,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    record = folder.to_dict()
    if as_json:
        print_json(record)
        return
    console = Console(highlight=False, soft_wrap=True)
    if not folder.complete:
        console.print(
            f"Process {share.rank} of {share.world} has sampled its part; the last to finish completes {folder.path}."
        )
        return
    cost = record["cost"]
    console.print(
        f"{record['images']} images in {folder.path}: {cost['full_evaluations']} full and "
        f"{cost['cached_evaluations']} cached evaluations per image, cost {cost['cost_per_image']} full evaluations, "
        f"{cost['seconds']} s, peak memory {cost['peak_memory_mb']} MB."
    )
