"""Which class each image has, for pipelines that sample images of classes."""

import hashlib
import inspect
from typing import Any

from iec.evaluation.per_image import PerImage


def class_inputs(pipe: Any, classes: str | None, seed: int) -> dict[str, Any]:
    """The `class_labels` of the pipeline's call; empty for a pipeline without classes.

    classes: `207`, `1+5+9` (taken by the images in turn), `all` (every class in turn), or `random` (the class of image
    i is drawn from (seed, i) alone).
    Raises ValueError for a pipeline without classes, one whose classes were not given, other text, or a class that the
    model does not have.
    """
    takes_classes = "class_labels" in inspect.signature(type(pipe).__call__).parameters
    if classes is None:
        if takes_classes:
            raise ValueError(
                f"{type(pipe).__name__} needs classes, which were not given: use --classes 207, 1+5+9, all or random."
            )
        return {}
    if not takes_classes:
        raise ValueError(f"{type(pipe).__name__} has no classes: leave out --classes.")
    count = num_classes(pipe)
    if classes == "random":
        return {"class_labels": PerImage(f"random of {count}, seed {seed}", lambda i: random_class(count, seed, i))}
    if classes == "all":
        return {"class_labels": list(range(count))}
    parts = classes.split("+")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"'{classes}' are no classes: write 207, 1+5+9, all or random.")
    labels = [int(part) for part in parts]
    for label in labels:
        if label >= count:
            raise ValueError(f"The classes of this model are 0 to {count - 1}, but {label} was asked for.")
    return {"class_labels": labels}


def num_classes(pipe: Any) -> int:
    """How many classes the pipeline has, without the one that means none.

    Raises ValueError where neither its transformer (DiT) nor its class embedder (LDM-4-G) says it.
    """
    transformer, embedder = getattr(pipe, "transformer", None), getattr(pipe, "class_embedder", None)
    if embedder is not None:
        return int(embedder.config.num_classes) - 1
    count = None if transformer is None else transformer.config.get("num_embeds_ada_norm")
    if count is None:
        raise ValueError(f"How many classes this {type(pipe).__name__} has cannot be told.")
    return int(count)


def random_class(count: int, seed: int, index: int) -> int:
    """The class of image `index` under `seed`, uniform over 0..count-1 and independent of the image's noise."""
    digest = hashlib.sha256(f"class of image {index} of seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8]) % count
