"""`iec reproduce --scale paper`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from iec.cli.common import print_json, progress, torch_dtype

if TYPE_CHECKING:
    from iec.evaluation.image_folder import ImageFolder
    from iec.evaluation.metrics.extractor import FeatureExtractor
    from iec.evaluation.metrics.reference import ReferenceSource
    from iec.experiments.settings import Setting

_OF_BOTH_SCALES = ("images", "batch_size", "device", "dtype")


@dataclass(frozen=True)
class PaperOptions:
    """What the command line says of a run at the paper's scale; None: as the paper has it."""

    data: str | None = None
    model: str | None = None
    captions: Path | None = None
    reference: Path | None = None
    features: str | None = None
    clip_model: str | None = None
    images: int | None = None
    batch_size: int | None = None
    device: str | None = None
    dtype: str | None = None

    def require_unset(self) -> None:
        """Raise ValueError, naming the first, where an option was given that belongs to the paper's scale alone."""
        for name, value in vars(self).items():
            if value is not None and name not in _OF_BOTH_SCALES:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --scale paper.")

    def of_both_scales(self) -> dict[str, Any]:
        """The options that every scale takes, those that were given. Raises ValueError for bad ones."""
        from iec.evaluation.bootstrap import MINIMUM_IMAGES

        found = {name: vars(self)[name] for name in _OF_BOTH_SCALES if vars(self)[name] is not None}
        torch_dtype(found.get("dtype", "float32"))
        for name, least in (("images", MINIMUM_IMAGES), ("batch_size", 1)):
            if found.get(name, least) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, but is {found[name]}.")
        return found


def reproduce_paper(what: str, options: PaperOptions, output: Path, results: Path, as_json: bool) -> None:
    """Sample, measure and write one table for one data set; whatever is missing is said before any work.

    Of several processes each samples its part of every row, and the last to finish measures.
    """
    import torch

    from iec.cli.prompts import prompt_inputs
    from iec.evaluation.image_sets import TensorImages
    from iec.evaluation.metrics.clip import DEFAULT_MODEL, ClipScore
    from iec.evaluation.metrics.evaluate import load_extractor
    from iec.evaluation.metrics.reference import open_reference
    from iec.evaluation.processes import Share
    from iec.experiments.paper.judging import PaperJudge, measured_reference
    from iec.experiments.paper.report import PaperReport, report_json, report_table, write_report
    from iec.experiments.paper.sampling import PaperSampler, differences, require_inputs, sample_table
    from iec.experiments.paper.tables import load_paper_table
    from iec.models.image_shape import image_shape
    from iec.models.paper import load_paper_model
    from iec.reports.table import to_rich
    from iec.storage.files import require_writable

    table = load_paper_table(what, options.data)
    share = Share.of_environment()
    model, features, device = table.model, options.features or "inception", share.device(options.device or "cpu")
    images = model.images if options.images is None else options.images
    prompts = tuple(prompt_inputs(None, options.captions).get("prompt", ()))
    require_inputs(model, images, prompts)
    if options.reference is None and features != "cifar":
        raise ValueError("Give the real images, or an npz of their statistics, with --reference.")
    extractor = load_extractor(features, device)
    clip_name = options.clip_model or DEFAULT_MODEL
    clip = ClipScore.load(clip_name, device) if model.takes_prompts else None
    pipe = load_paper_model(model, options.model, torch_dtype(options.dtype or "float32"), device)
    sampler = PaperSampler(
        pipe, model, options.model or str(model.hub), results / model.name, images,
        model.batch_size if options.batch_size is None else options.batch_size, prompts=prompts, share=share,
    )  # fmt: skip
    shape = image_shape(pipe)
    extractor.require_shape(shape)
    size = TensorImages(torch.zeros(1, *shape, dtype=torch.uint8), f"an image of {model.title}")
    source = open_reference(options.reference, size, extractor)
    for folder in (output, sampler.folder):
        require_writable(folder)

    console = Console(highlight=False, soft_wrap=True)
    with progress("images", shown=share.rank == 0) as bar:
        # First, and in every process: a reference with bad images is refused before anything is sampled.
        task = bar.add_task("reference", total=None if source.images is None else len(source.images))
        reference = measured_reference(source, extractor, on_progress=lambda count: bar.advance(task, count))
        task = bar.add_task("sampling", total=images * sum(len(system) for system in table.systems))
        folders = sample_table(
            table,
            sampler,
            on_row=lambda setting: bar.update(task, description=f"{setting.label:<44}"),
            on_images=lambda count: bar.update(task, completed=count),
            on_calibration=lambda setting, done, total: bar.update(
                task, description=f"calibrating {setting.system} {done}/{total}".ljust(44)
            ),
        )
        if not all(folder.complete for folder in folders.values()):
            console.print(
                f"Process {share.rank} of {share.world} has sampled its part of every row; the last to finish measures "
                "them. Should one have died, run the same command again."
            )
            return
        judge = PaperJudge(extractor, reference, prompts, clip, clip_name)
        systems = _measured(table, folders, judge, bar)
    report = PaperReport(table, systems, _features(extractor, source, features), differences(sampler))
    paths = write_report(report, output)
    if as_json:
        print_json(report_json(report))
        return
    console.print(to_rich(report_table(report)))
    console.print(f"Page: {paths[0]}")


def _measured(table: Any, folders: "dict[Setting, ImageFolder]", judge: Any, bar: Any) -> list[list[Any]]:
    """The results of every row, system by system."""
    from iec.experiments.paper.judging import figures_by_name
    from iec.experiments.paper.report import PaperResult

    measuring = bar.add_task("measuring", total=len(folders))
    systems: list[list[PaperResult]] = []
    for system in table.systems:
        results = []
        for row in system:
            folder = folders[row.setting]
            figures = figures_by_name(judge.judge(folder), judge.extractor)
            results.append(PaperResult(row, figures, folder.to_dict()))
            bar.advance(measuring)
        systems.append(results)
    return systems


def _features(extractor: "FeatureExtractor", source: "ReferenceSource", features: str) -> str:
    """What the figures are made of, and what differs from the paper's evaluator."""
    if features == "cifar":
        return (
            f"FID and IS stand for {extractor.titles.frechet} and {extractor.titles.score} of the embedded CIFAR-10 "
            f"network here, which cannot be compared with the published ones in value. Reference: {source.name}."
        )
    return (
        "Inception's features are torch-fidelity's, over all images at once; the paper's code uses guided-diffusion's "
        f"TensorFlow evaluator, whose IS is a mean over splits of 5,000. Reference: {source.name}."
    )
