"""What the commands share: options, the dtype, and progress on standard error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Model = Annotated[
    str | None, typer.Argument(help="A diffusers folder or hub name; without it, the embedded CIFAR-10 model.")
]
Seed = Annotated[int, typer.Option(help="Image i is drawn from generator seed * 1000000 + i; 0 to 1999.")]
BatchSize = Annotated[int, typer.Option(help="Images per batch; part of what decides the last bits.")]
Device = Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")]
DType = Annotated[str, typer.Option(help="The network's dtype: float32, bfloat16, float16 or float64.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Cache = Annotated[
    str | None, typer.Option(help="deepcache:N, also with ,branch=.. ,schedule=uniform|centred|power|dps or ,forecast.")
]
Quantize = Annotated[str | None, typer.Option(help="wXaY, such as w8a8 or w4a8,reconstruction=layer; simulated.")]
CacheQuant = Annotated[
    str | None, typer.Option(help="N,wXaY or N,float, also with ,forecast: both, errors corrected per channel.")
]
Prompt = Annotated[str | None, typer.Option(help="The prompt of a text-to-image pipeline.")]
Prompts = Annotated[Path | None, typer.Option(help="A file of prompts, one a line, used in turn.")]
Classes = Annotated[
    str | None, typer.Option(help="Of a class-conditional pipeline: 207, 1+5+9 (in turn), all (in turn), or random.")
]
Spacing = Annotated[
    str | None,
    typer.Option(help="quad, uniform, linspace, or scheduler (the pipeline's own); quad for the embedded model."),
]


def torch_dtype(name: str) -> Any:
    """The torch dtype of that name. Raises ValueError for another."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if name not in known:
        raise ValueError(f"Unknown dtype '{name}': use {', '.join(known)}.")
    return known[name]


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


def progress(unit: str, shown: bool = True) -> Progress:
    """A progress bar on standard error, with how many a second and the time left; `shown`: or none at all."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
        speed_estimate_period=600,  # a batch may take minutes
    )


def staged(bar: Progress) -> Callable[[str, int, int], None]:
    """What shows stages one below the other: `(stage, done, total)`."""
    tasks: dict[str, TaskID] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done, total=total)

    return on_progress


def print_json(value: dict[str, Any]) -> None:
    """Print JSON, and nothing else, on standard output."""
    typer.echo(json.dumps(value, indent=2))
