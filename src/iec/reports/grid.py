"""Pictures side by side: one labelled row of the same images per variant."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from iec.storage.files import write_atomically

_INK = (32, 32, 32)


@dataclass(frozen=True)
class GridLayout:
    """Where everything of a picture grid lies, in pixels of the drawn image."""

    lines: tuple[tuple[str, ...], ...]
    cell: tuple[int, int]
    columns: int
    gap: int
    label_width: int
    line_height: int
    font_size: int

    @property
    def row_heights(self) -> list[int]:
        """The height of each row: its pictures', or its label's where that is higher."""
        return [max(self.cell[1], len(lines) * self.line_height) for lines in self.lines]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole grid."""
        height = sum(self.row_heights) + self.gap * (len(self.lines) + 1)
        return self.place(0, self.columns)[0], height

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of the picture in `row` and `column`."""
        heights = self.row_heights
        top = [0, *accumulate(height + self.gap for height in heights)][row] + self.gap
        left = self.gap + self.label_width + column * (self.cell[0] + self.gap)
        return left, top + (heights[row] - self.cell[1]) // 2


def grid_layout(
    rows: Sequence[tuple[str, torch.Tensor]],
    scale: int = 2,
    gap: int = 4,
    label_width: int = 240,
    font_size: int | None = None,
) -> GridLayout:
    """The layout of `picture_grid`, which takes and checks the same arguments."""
    if not rows:
        raise ValueError("A picture grid needs at least one row.")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, but is {scale}.")
    first = rows[0][1]
    for label, images in rows:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise ValueError(
                f"The images of '{label}' must be uint8 of shape [n, 3, H, W], "
                f"but are {str(images.dtype).removeprefix('torch.')} of shape {list(images.shape)}."
            )
        if images.shape != first.shape:
            raise ValueError(
                f"Every row must hold the same images, but '{label}' has shape {list(images.shape)} "
                f"and '{rows[0][0]}' has {list(first.shape)}."
            )
    count, _, height, width = first.shape
    size = font_size or min(28, max(14, height * scale // 4))
    font = _font(size)
    lines = tuple(tuple(_wrap(label, font, label_width)) for label, _ in rows)
    widest = max((font.getlength(line) for of_row in lines for line in of_row), default=0)
    column = round(widest) + size if widest else 0
    return GridLayout(lines, (width * scale, height * scale), count, gap, column, round(size * 1.3), size)


def picture_grid(
    rows: Sequence[tuple[str, torch.Tensor]],
    scale: int = 2,
    gap: int = 4,
    label_width: int = 240,
    font_size: int | None = None,
) -> Image.Image:
    """One row per (label, uint8 images [n, 3, H, W]): the label at the left, then the n pictures.

    scale: how many times larger each picture is drawn, every pixel as a square.
    gap: white pixels around each picture. label_width: the pixels after which a label is wrapped.
    Raises ValueError where the rows are empty or their shapes differ.
    """
    layout = grid_layout(rows, scale, gap, label_width, font_size)
    grid = Image.new("RGB", layout.size, "white")
    draw, font = ImageDraw.Draw(grid), _font(layout.font_size)
    for row, (_, images) in enumerate(rows):
        middle = layout.place(row, 0)[1] + layout.cell[1] / 2
        top = middle - layout.line_height * (len(layout.lines[row]) - 1) / 2
        for index, line in enumerate(layout.lines[row]):
            draw.text((gap, top + index * layout.line_height), line, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
            grid.paste(picture.resize(layout.cell, Image.Resampling.NEAREST), layout.place(row, column))
    return grid


def thumbnails(images: torch.Tensor, longest: int = 128) -> torch.Tensor:
    """Images uint8 [n, 3, H, W], n at least 1, shrunk until no side is longer than `longest`; small ones stay."""
    height, width = images.shape[2:]
    factor = longest / max(height, width)
    if factor >= 1:
        return images
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    small = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(size) for image in images]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in small])


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write the image as a PNG file, atomically."""
    data = png_bytes(image)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font lacks the signs that our labels need (lambda, the multiplication sign, dashes); matplotlib's
    # has them and is always installed.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
