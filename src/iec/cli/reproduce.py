"""`iec reproduce`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from iec.cli.common import Json, print_json
from iec.cli.reproduce_paper import PaperOptions, reproduce_paper
from iec.cli.watching import watched


def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            help="efficient, correction, table1 to 5, figure2 to 11, iterations, relaxation, pareto or severity."
        ),
    ],
    size: Annotated[str, typer.Option(help="Of `efficient`: quick (two cores, 90 minutes) or full (a GPU).")] = "quick",
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the page and its pictures go.")] = Path(
        "iec-results"
    ),
    results: Annotated[
        Path, typer.Option(help="Where sampled rows and plans are kept; what is there is not computed again.")
    ] = Path("iec-results/measured"),
    only: Annotated[
        str | None, typer.Option(help="Of `efficient`: sample only the rows whose name contains this; writes no page.")
    ] = None,
    available: Annotated[
        bool, typer.Option("--available", help="Of `efficient`, `correction` and figures: sample nothing new.")
    ] = False,
    scale: Annotated[
        str, typer.Option(help="embedded (our model), or paper (table1 to table5 with the paper's models).")
    ] = "embedded",
    data: Annotated[
        str | None, typer.Option(help="Of the paper scale: cifar10, churches, bedrooms, imagenet or coco.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of the paper scale: the folder that iec convert wrote, or another hub name.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Of the paper scale: a file of COCO captions, one a line.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Of the paper scale: the real images, or an npz of their statistics.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Of the paper scale: inception (the default; extra fid) or cifar.")
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option(help="Of the paper scale: a CLIP model of transformers; without it, ViT-g/14.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("-n", "--images", help="Images per row; without it, 500, or as many as the paper has.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch; without it, 32, or as many as the paper has.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="A torch device, such as cuda; without it, cpu.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="The network's dtype; without it, bfloat16, at the paper scale float32.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the paper's claims on the embedded model, or with --scale paper on the paper's; run again, it goes on.

    On a GPU, more images: iec reproduce table2 --device cuda -n 5000 --batch-size 250 -o results/

    Example: iec reproduce table2 -o results/
    """
    from iec.experiments.figures.config import figure_names, load_figure
    from iec.experiments.tables import load_tables, table_names
    from iec.storage.files import require_writable

    known = ["efficient", "correction", *table_names(), *figure_names()]
    if what not in known:
        raise ValueError(f"There is nothing called '{what}' to reproduce: use {', '.join(known)}.")
    options = PaperOptions(data, model, captions, reference, features, clip_model, images, batch_size, device, dtype)
    if scale not in ("embedded", "paper"):
        raise ValueError(f"Unknown scale '{scale}': use embedded or paper.")
    if scale == "paper":
        reproduce_paper(what, options, output, results, as_json)
        return
    options.require_unset()
    chosen = options.of_both_scales()
    if what == "efficient":
        from iec.experiments.evidence import EvidenceConfig

        config = EvidenceConfig.load(size)
        if "images" in chosen:
            config = config.with_images(chosen.pop("images"))
        config = replace(config, **chosen)
        require_writable(output)
        _efficient(config, size, output, results, only, available, as_json)
        return
    if what == "correction":
        from iec.experiments.correction_study import CorrectionStudy

        require_writable(output)
        _correction(replace(CorrectionStudy.load(), **chosen), output, results, available, as_json)
        return
    if what in figure_names():
        figure = load_figure(what)
        figure = replace(figure, table=replace(figure.table, **chosen))
        require_writable(output)
        _figure(figure, output, results, available, as_json)
        return
    parts = [replace(part, **chosen) for part in load_tables(what)]
    require_writable(output)
    _tables(parts, output, results, as_json)


def _efficient(
    config: Any, size: str, output: Path, results: Path, only: str | None, available: bool, as_json: bool
) -> None:
    from iec.experiments import evidence
    from iec.experiments.evidence_report import evidence_json, evidence_table, judge_part, write_evidence
    from iec.reports.table import to_rich

    def work(callbacks: dict[str, Any]) -> Any:
        measurements = config.measurements(results, **callbacks)
        if available:
            return evidence.available(config, measurements)
        return evidence.measure(config, measurements, lambda setting: only is None or only in setting.label)

    rows = watched(sum(p.images * len(p.seeds) * len(p.settings()) for p in config.parts), work)
    console = Console(highlight=False, soft_wrap=True)
    if only is not None:
        console.print(f"{len(rows)} rows are in {results}.")
        return
    found = [[row for row in rows if row.part == part] for part in config.parts]
    sections = [judge_part(of_part) for of_part in found if of_part]
    if not sections:
        raise ValueError(f"No row is in '{results}' yet: leave out --available.")
    paths = write_evidence(sections, config, size, output)
    if as_json:
        print_json(evidence_json(sections, size))
        return
    for section in sections:
        console.print(to_rich(evidence_table(section)))
    console.print(f"Page: {paths[0]}")


def _correction(study: Any, output: Path, results: Path, available: bool, as_json: bool) -> None:
    from iec.experiments.correction_page import study_json, study_tables, write_study
    from iec.experiments.correction_study import measure_study
    from iec.reports.table import to_rich

    groups = watched(
        study.total_images(),
        lambda callbacks: measure_study(study, study.measurements(results, **callbacks), available),
    )
    if not groups:
        raise ValueError(f"No group of the study is in '{results}' yet: leave out --available.")
    path = write_study(groups, study, output)
    if as_json:
        print_json(study_json(groups))
        return
    console = Console(highlight=False, soft_wrap=True)
    for table in study_tables(groups, study):
        console.print(to_rich(table))
    console.print(f"Page: {path}")


def _tables(parts: list[Any], output: Path, results: Path, as_json: bool) -> None:
    from iec.experiments.tables import full_precision, measure_table
    from iec.experiments.tables_html import write_table_html
    from iec.experiments.tables_report import JudgedTable, judge_table, result_table, table_json, write_table
    from iec.reports.table import to_rich

    total = sum(table.images * (1 + len(table.systems) * len(table.corrections)) for table in parts)

    def work(callbacks: dict[str, Any]) -> Any:
        judged = []
        for table in parts:
            measurements = table.measurements(results, **callbacks)
            reference = full_precision(table, measurements)
            systems = judge_table(measure_table(table, measurements), reference.images)
            judged.append(JudgedTable(table, tuple(systems)))
        return judged

    judged = watched(total, work)
    paths = write_table(judged, output)
    report = write_table_html(judged, output)
    if as_json:
        print_json(table_json(judged))
        return
    console = Console(highlight=False, soft_wrap=True)
    for part in judged:
        console.print(to_rich(result_table(part)))
    console.print(f"Page: {paths[0]}")
    console.print(f"Report: {report}")


def _figure(figure: Any, output: Path, results: Path, available: bool, as_json: bool) -> None:
    from iec.experiments.figures.drawing import figure_json, write_figure
    from iec.experiments.figures.reproduce import FigureSource
    from iec.reports.table import to_rich

    if available:
        FigureSource(figure, results).require_sampled()
    total = FigureSource(figure, results).images()
    drawing = watched(total, lambda callbacks: FigureSource(figure, results, **callbacks).draw())
    paths = write_figure(figure, drawing, output)
    if as_json:
        print_json(figure_json(figure, drawing))
        return
    console = Console(highlight=False, soft_wrap=True)
    for sentence in drawing.sentences:
        console.print(sentence, markup=False)
    console.print(to_rich(drawing.table))
    console.print(f"Page: {paths[0]}")
