from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iec.reports.grid import grid_layout, picture_grid, png_bytes, save_png, thumbnails


def images(count: int, height: int = 5, width: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


LONG = "corrected at the edges of the sampling run with relaxation λ=0.5 × one iteration, and more words"
ROWS = [("full precision", images(4, seed=1)), (LONG, images(4, seed=2)), ("", images(4, seed=3))]


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_each_picture_is_the_upscaled_input_at_its_place(scale: int) -> None:
    grid = np.asarray(picture_grid(ROWS, scale=scale, gap=3))
    layout = grid_layout(ROWS, scale=scale, gap=3)
    assert grid.shape == (layout.size[1], layout.size[0], 3)
    for row, (_, batch) in enumerate(ROWS):
        for column, image in enumerate(batch):
            left, top = layout.place(row, column)
            drawn = grid[top : top + 5 * scale, left : left + 7 * scale]
            expected = image.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(drawn, expected)


def test_everything_besides_pictures_and_labels_is_white() -> None:
    grid = np.asarray(picture_grid(ROWS, gap=3)).copy()
    layout = grid_layout(ROWS, gap=3)
    for row in range(3):
        for column in range(4):
            left, top = layout.place(row, column)
            grid[top : top + 10, left : left + 14] = 255
    assert (grid[:, layout.label_width :] == 255).all()
    assert (grid[:3] == 255).all()
    assert (grid[-3:] == 255).all()


def test_pictures_of_neighbouring_columns_and_rows_are_a_gap_apart() -> None:
    rows = [("a", images(3)), ("b", images(3))]
    layout = grid_layout(rows, scale=4, gap=6)
    (x0, y0), (x1, y1) = layout.place(0, 0), layout.place(1, 1)
    assert (x1 - x0, y1 - y0) == (7 * 4 + 6, 5 * 4 + 6)
    assert layout.place(1, 2)[0] + 7 * 4 + 6 == layout.size[0]
    assert layout.place(1, 2)[1] + 5 * 4 + 6 == layout.size[1]


def test_labels_are_drawn_beside_their_own_row_and_long_ones_wrap() -> None:
    grid = np.asarray(picture_grid(ROWS, gap=3, label_width=150))
    layout = grid_layout(ROWS, gap=3, label_width=150)
    heights = layout.row_heights
    labels = grid[:, : layout.label_width].min(axis=2) < 128
    starts = [3, 3 + heights[0] + 3, 3 + heights[0] + 3 + heights[1] + 3]
    inked = [labels[start : start + height].any() for start, height in zip(starts, heights, strict=True)]
    assert inked == [True, True, False]
    assert len(layout.lines[1]) > 1
    assert " ".join(layout.lines[1]) == LONG
    assert heights[1] == len(layout.lines[1]) * layout.line_height > heights[0]
    assert layout.label_width <= 150 + layout.font_size


def test_a_word_longer_than_the_label_column_is_broken() -> None:
    layout = grid_layout([("x" * 100, images(1))], label_width=80)
    assert "".join(layout.lines[0]) == "x" * 100
    assert layout.label_width <= 80 + layout.font_size


def test_signs_of_the_labels_are_in_the_font() -> None:
    drawn = [np.asarray(picture_grid([(sign, images(1))], font_size=20)).tobytes() for sign in "λ×±→–\ue123"]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "needs at least one row"),
        ([("a", images(2).float())], r"must be uint8 of shape \[n, 3, H, W\], but are float32 of shape \[2, 3, 5, 7\]"),
        ([("a", images(2)[:, :1])], r"of shape \[2, 1, 5, 7\]"),
        ([("a", images(2)[:0])], r"of shape \[0, 3, 5, 7\]"),
        ([("a", images(2)), ("b", images(3))], r"'b' has shape \[3, 3, 5, 7\] and 'a' has \[2, 3, 5, 7\]"),
    ],
)
def test_rows_that_make_no_grid_are_refused(rows: list[tuple[str, torch.Tensor]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        picture_grid(rows)


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be at least 1, but is 0"):
        picture_grid(ROWS, scale=0)


def test_the_saved_png_holds_the_same_pixels(tmp_path: Path) -> None:
    grid = picture_grid(ROWS)
    save_png(grid, tmp_path / "deeper" / "grid.png")
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["grid.png"]
    assert (tmp_path / "deeper" / "grid.png").read_bytes() == png_bytes(grid)
    with Image.open(tmp_path / "deeper" / "grid.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(grid))


def test_large_images_are_shrunk_as_a_whole_and_small_ones_stay() -> None:
    assert torch.equal(thumbnails(ROWS[0][1]), ROWS[0][1])
    large = torch.zeros(2, 3, 60, 120, dtype=torch.uint8)
    large[:, 0, :, 60:] = 200  # the right half is red
    small = thumbnails(large, longest=20)
    assert small.shape == (2, 3, 10, 20)
    assert small.dtype == torch.uint8
    assert small[:, 0, :, :9].max() == 0
    assert small[:, 0, :, 11:].min() == 200
    assert small[:, 1:].max() == 0
