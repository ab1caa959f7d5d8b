"""The figures of a sampled row, measured once and kept beside its images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iec.evaluation.bootstrap import Estimate
from iec.evaluation.image_folder import ImageFolder
from iec.evaluation.image_sets import open_images
from iec.evaluation.metrics.clip import ClipScore
from iec.evaluation.metrics.evaluate import choose_metrics, evaluate
from iec.evaluation.metrics.extractor import FeatureExtractor
from iec.evaluation.metrics.figure import Figure
from iec.evaluation.metrics.reference import ReferenceSource
from iec.storage.files import write_json
from iec.storage.fingerprint import tensors_fingerprint, texts_digest

_FIGURES = "figures.json"


@dataclass(frozen=True)
class PaperJudge:
    """What measures rows. reference: the real images, measured already. prompts, clip: for the CLIP score."""

    extractor: FeatureExtractor
    reference: ReferenceSource
    prompts: tuple[str, ...] = ()
    clip: ClipScore | None = None
    clip_name: str = ""
    batch_size: int = 50

    def metrics(self, images: int) -> tuple[str, ...]:
        """FID and IS, sFID where the reference has spatial features, CLIP score where there are prompts.

        KID joins below 10,000 images where the reference's features are known.
        """
        known = self.reference.known
        names = ["fd", "is", *(["sfd"] if known is not None and known.spatial is not None else [])]
        names += ["clip"] if self.clip is not None else []
        return choose_metrics(names, images, self.reference, False, bool(self.prompts))

    def judge(
        self, folder: ImageFolder, on_progress: Callable[[int], None] = lambda images: None
    ) -> tuple[Figure, ...]:
        """The figures of the images in `folder`, from its `figures.json` where they were measured before."""
        identity = self._identity(folder)
        path = folder.path.with_name(f"{folder.path.name}.{_FIGURES}")
        kept = _read(path, identity)
        if kept is not None:
            return kept
        images = open_images(folder.path)
        metrics = self.metrics(len(images))
        found = evaluate(
            images, metrics, self.extractor, self.reference, prompts=self.prompts, clip=self.clip,
            batch_size=self.batch_size, on_progress=on_progress,
        ).figures  # fmt: skip
        write_json(path, {"identity": identity, "figures": [figure.to_dict() for figure in found]})
        return found

    def _identity(self, folder: ImageFolder) -> dict[str, Any]:
        """Everything that decides the figures, as JSON values."""
        known = self.reference.known
        assert known is not None
        moments = {"mean": known.pooled.mean, "covariance": known.pooled.covariance}
        values = {
            "settings": folder.settings,
            "images": folder.num_images,
            "metrics": self.metrics(folder.num_images),
            "features": self.extractor.titles.frechet,
            "reference": tensors_fingerprint(moments),
            "prompts": texts_digest(self.prompts),
            "clip": self.clip_name,
        }
        found: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return found


def measured_reference(
    source: ReferenceSource,
    extractor: FeatureExtractor,
    batch_size: int = 50,
    on_progress: Callable[[int], None] = lambda images: None,
) -> ReferenceSource:
    """The reference with its features measured, so that no row measures them again."""
    return replace(source, images=None, known=source.measure(extractor, batch_size, on_progress))


def figures_by_name(figures: Sequence[Figure], extractor: FeatureExtractor) -> dict[str, Figure]:
    """The figures as the paper calls them (FID, IS, CLIP score), whatever extractor made them; others by their own."""
    titles = extractor.titles
    papers = {titles.frechet: "FID", titles.score: "IS"}
    return {papers.get(figure.name, figure.name): figure for figure in figures}


def _read(path: Path, identity: dict[str, Any]) -> tuple[Figure, ...] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        figures = tuple(map(_figure, found["figures"]))
    except (ValueError, KeyError, TypeError):  # a file of another program: measured again
        return None
    return figures if found["identity"] == identity else None


def _figure(values: dict[str, Any]) -> Figure:
    estimate = Estimate(values["value"], values["low"], values["high"])
    return Figure(values["name"], estimate, values["images"], values["better"], values.get("warning", ""))
