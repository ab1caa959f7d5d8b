"""Where to write small labels beside the points of a plot so that nothing lies on anything else."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_ANGLES = [math.pi / 4 * k for k in (1, 7, 3, 5, 0, 4, 2, 6)]
_RADII = (11.0, 15.0, 20.0, 26.0, 33.0)


def place_labels(
    anchors: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], bounds: Box
) -> list[tuple[float, float]]:
    """The centre of each label, near its anchor: the closest free place, else the one with the least overlap.

    anchors (x, y), sizes (width, height), boxes (left, bottom, right, top): all in points.
    """
    taken, centres = list(obstacles), []
    for (x, y), size in zip(anchors, sizes, strict=True):
        candidates = [(x + r * math.cos(angle), y + r * math.sin(angle)) for r in _RADII for angle in _ANGLES]
        centre = min(candidates, key=lambda place: _badness(_box(place, size), taken, bounds))
        taken.append(_box(centre, size))
        centres.append(centre)
    return centres


def _box(centre: tuple[float, float], size: tuple[float, float]) -> Box:
    (x, y), (width, height) = centre, size
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _badness(box: Box, taken: Sequence[Box], bounds: Box) -> float:
    outside = (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, bounds)
    return 10 * outside + sum(overlap(box, other) for other in taken)


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
