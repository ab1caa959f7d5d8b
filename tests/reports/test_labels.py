from itertools import combinations

from iec.reports.labels import Box, overlap, place_labels

BOUNDS = (0.0, 0.0, 400.0, 300.0)


def boxes(centres: list[tuple[float, float]], size: tuple[float, float]) -> list[Box]:
    (width, height) = size
    return [(x - width / 2, y - height / 2, x + width / 2, y + height / 2) for x, y in centres]


def test_overlap_is_the_shared_area() -> None:
    assert overlap((0, 0, 4, 4), (1, 2, 9, 9)) == 6
    assert overlap((0, 0, 4, 4), (4, 0, 8, 4)) == 0


def test_a_lone_label_stands_close_to_its_anchor() -> None:
    [(x, y)] = place_labels([(100, 100)], [(8, 9)], [(95, 95, 105, 105)], BOUNDS)
    assert 0 < ((x - 100) ** 2 + (y - 100) ** 2) ** 0.5 < 16


def test_crowded_labels_lie_on_nothing_and_inside_the_bounds() -> None:
    anchors = [(5.0, 5.0), (12.0, 9.0), (14.0, 20.0), (200.0, 150.0), (203.0, 151.0), (206.0, 150.0), (395.0, 295.0)]
    obstacles = [(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    size = (12.0, 9.0)
    placed = boxes(place_labels(anchors, [size] * len(anchors), obstacles, BOUNDS), size)
    assert all(overlap(one, other) == 0 for one, other in combinations(placed, 2))
    assert all(overlap(label, obstacle) == 0 for label in placed for obstacle in obstacles)
    assert all(overlap(label, BOUNDS) == size[0] * size[1] for label in placed)


def test_a_place_is_found_even_where_none_is_free() -> None:
    assert len(place_labels([(5, 5)] * 30, [(50, 50)] * 30, [(0, 0, 10, 10)], (0, 0, 10, 10))) == 30
