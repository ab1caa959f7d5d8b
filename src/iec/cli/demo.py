"""`iec demo`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from iec.cli.common import Cache, CacheQuant, Json, Quantize, Seed, print_json, progress


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where report.html, grid.png and demo.json go.")
    ] = Path("iec-demo"),
    seed: Seed = 0,
    images: Annotated[int | None, typer.Option("-n", "--images", help="Images per row; at least 10.")] = None,
    cache: Cache = None,
    quantize: Quantize = None,
    cachequant: CacheQuant = None,
    plan: Annotated[Path | None, typer.Option(help="A plan of the embedded model, for the demo's steps.")] = None,
    as_json: Json = False,
) -> None:
    """The main job on the embedded model: efficient, corrected, compared at equal cost, and pictured.

    Each of --cache, --quantize, --cachequant and --plan names a system to show in the place of the demo's own caches.

    Example: iec demo -o iec-demo/
    """
    from iec.efficient import load_plan
    from iec.experiments.demo import Plan, run_demo
    from iec.experiments.demo_report import demo_dict, demo_sentences, demo_table, write_demo
    from iec.experiments.language import parse_cache, parse_cachequant, parse_quantization
    from iec.experiments.settings import Setting
    from iec.reports.table import to_rich
    from iec.storage.files import require_writable

    if images is not None and images < 10:
        raise ValueError(f"The demo needs at least 10 images per row for its intervals, but got {images}.")
    named = (parse_cache(cache), parse_quantization(quantize), parse_cachequant(cachequant))
    techniques = [technique for technique in named if technique is not None]
    given = None if plan is None else load_plan(plan)
    require_writable(output)
    with progress("evaluations") as bar:
        task = bar.add_task("loading the model", total=None)

        def on_plan(plan: Plan) -> None:
            bar.update(task, total=round(plan.evaluations))

        def on_setting(setting: Setting) -> None:
            bar.update(task, description=f"{setting.label:<34}")

        result = run_demo(seed, images, techniques, given, on_plan, on_setting, lambda count: bar.advance(task, count))
    paths = write_demo(result, output)
    if as_json:
        print_json(demo_dict(result))
        return
    # Output that goes into a file has no width of its own: give the table room.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(to_rich(demo_table(result)))
    console.print("")
    for sentence in demo_sentences(result):
        console.print(sentence)
    console.print(f"\nTook {result.seconds:.0f} s. Report: {paths['report']}  Pictures: {paths['grid']}")
