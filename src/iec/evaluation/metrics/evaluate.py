"""All figures of a set of images: which were asked for, what each needs, and what is measured in which order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iec.evaluation.bootstrap import MINIMUM_IMAGES
from iec.evaluation.image_sets import ImageSet, require_pairs
from iec.evaluation.metrics.cifar import CifarExtractor
from iec.evaluation.metrics.clip import ClipScore, clip_figure
from iec.evaluation.metrics.distances import ENOUGH, frechet_figure, kernel_figure
from iec.evaluation.metrics.extractor import FeatureExtractor
from iec.evaluation.metrics.feature_set import FeatureSet, collect
from iec.evaluation.metrics.figure import Figure
from iec.evaluation.metrics.inception import InceptionExtractor
from iec.evaluation.metrics.inception_score import score_figure
from iec.evaluation.metrics.lpips import Lpips
from iec.evaluation.metrics.paired import paired_figures
from iec.evaluation.metrics.precision_recall import precision_recall_figures
from iec.evaluation.metrics.reference import ReferenceSource
from iec.models.features import load_feature_network
from iec.models.loading import usable_device

GROUND_TRUTH = ("fd", "kd", "sfd", "is", "pr")
PAIRED = ("psnr", "ssim", "lpips")
METRICS = (*GROUND_TRUTH, "clip", *PAIRED)
#: Told what is measured, and of how many images.
OnStage = Callable[[str, int], None]


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of images; `features` are what the ground-truth figures were made of, if any were."""

    images: str
    reference: str | None
    full_precision: str | None
    figures: tuple[Figure, ...]
    features: FeatureSet | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "images": self.images,
            "reference": self.reference,
            "full_precision": self.full_precision,
            "figures": [figure.to_dict() for figure in self.figures],
        }


def load_extractor(name: str, device: str = "cpu") -> FeatureExtractor:
    """`cifar` or `inception`. Raises ValueError for another name or device, or where the extra is missing."""
    usable_device(device)
    if name == "cifar":
        return CifarExtractor(load_feature_network().to(device))
    if name == "inception":
        return InceptionExtractor(device=device)
    raise ValueError(f"Unknown features '{name}': use cifar or inception.")


def require_known(names: Sequence[str] | None) -> None:
    """Raise ValueError for a name that is none of `METRICS`; None names none."""
    for name in names or ():
        if name not in METRICS:
            raise ValueError(f"Unknown metric '{name}': use {', '.join(METRICS)}, joined by +.")


def choose_metrics(
    names: Sequence[str] | None,
    images: int,
    reference: ReferenceSource | None,
    full_precision: bool,
    prompts: bool,
) -> tuple[str, ...]:
    """The metrics to measure: those named, or all that need no extra for what was given; in the order of `METRICS`.

    Below 10,000 images the kernel distance joins a Frechet distance where the reference's features are known.
    Raises ValueError for an unknown name, or one whose input was not given.
    """
    has_features = reference is not None and reference.has_features
    if names is None:
        chosen = {"is"} | ({"fd"} if reference else set()) | ({"kd", "pr"} if has_features else set())
        chosen |= ({"psnr", "ssim"} if full_precision else set()) | ({"clip"} if prompts else set())
    else:
        chosen = set(names)
    require_known(names)
    for name in chosen:
        if name in ("fd", "sfd") and reference is None:
            raise ValueError(f"The metric '{name}' needs a reference.")
        if name in ("kd", "pr") and not has_features:
            raise ValueError(f"The metric '{name}' needs the reference's images: statistics alone do not say it.")
        if name in PAIRED and not full_precision:
            raise ValueError(f"The metric '{name}' needs the full-precision images of the same seeds.")
        if name == "clip" and not prompts:
            raise ValueError("The metric 'clip' needs the prompts of the images.")
    if "fd" in chosen and images < ENOUGH and has_features:
        chosen.add("kd")
    return tuple(name for name in METRICS if name in chosen)


def evaluate(
    images: ImageSet,
    metrics: Sequence[str],
    extractor: FeatureExtractor,
    reference: ReferenceSource | None = None,
    full_precision: ImageSet | None = None,
    prompts: Sequence[str] = (),
    clip: ClipScore | None = None,
    lpips: Lpips | None = None,
    batch_size: int = 250,
    on_stage: OnStage = lambda stage, images: None,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Measure `metrics`, as `choose_metrics` gave them.

    Raises ValueError, before anything is measured, for images that do not fit the extractor or one another, or fewer
    than 10.
    """
    ground_truth = [name for name in metrics if name in GROUND_TRUTH]
    paired = tuple(name for name in metrics if name in PAIRED)
    if len(images) < MINIMUM_IMAGES:
        raise ValueError(f"'{images.name}' holds {len(images)} images: an interval needs at least {MINIMUM_IMAGES}.")
    if ground_truth:
        extractor.require_shape(images.shape)
    if full_precision is not None:
        require_pairs(images, full_precision)
    figures: list[Figure] = []
    features = None
    if ground_truth:
        theirs = None
        if reference is not None and set(ground_truth) != {"is"}:
            if reference.images is not None:
                on_stage("reference", len(reference.images))
            theirs = reference.measure(extractor, batch_size, on_progress)
        on_stage("features", len(images))
        features = collect(images, extractor, batch_size, on_progress=on_progress)
        figures += _ground_truth(ground_truth, extractor, features, theirs)
    if "clip" in metrics:
        assert clip is not None
        on_stage("prompts", len(images))
        figures.append(clip_figure(images, prompts, clip, on_progress=on_progress))
    if paired:
        assert full_precision is not None
        on_stage("pairs", len(images))
        figures += paired_figures(images, full_precision, paired, lpips, on_progress=on_progress)
    return Evaluation(
        images.name,
        None if reference is None else reference.name,
        None if full_precision is None else full_precision.name,
        tuple(figures),
        features,
    )


def _ground_truth(
    names: Sequence[str], extractor: FeatureExtractor, images: FeatureSet, reference: FeatureSet | None
) -> list[Figure]:
    titles, figures = extractor.titles, list[Figure]()
    for name in names:
        if name == "is":
            figures.append(score_figure(titles.score, images))
            continue
        assert reference is not None
        if name == "fd":
            figures.append(frechet_figure(titles.frechet, images, reference))
        elif name == "sfd":
            figures.append(frechet_figure(titles.spatial, images, reference, spatial=True))
        elif name == "kd":
            figures.append(kernel_figure(titles.kernel, images, reference))
        else:
            figures += precision_recall_figures(titles.precision, titles.recall, images, reference)
    return figures
