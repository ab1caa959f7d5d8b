"""The range search: of 40 shrunken ranges, the one whose grid loses least in the L2.4 norm (spec 4.1).

The grid that is scored is the grid that is stored. The search is exact where the values are at hand, and runs on a
histogram where they stream by.
"""

import torch

from iec.efficient.quantization.histogram import Histogram
from iec.efficient.quantization.quantizer import Grid, fake_quantize, grid_of_range

POWER = 2.4
SHRINKS = tuple(1 - 0.01 * i for i in range(0, 80, 2))


def search_weight(weight: torch.Tensor, bits: int) -> Grid:
    """One grid per output channel of `weight` [O, ...], delta and zero_point [O, 1, ...]."""
    rows = weight.detach().flatten(1)
    grid = candidate(*rows.aminmax(dim=1, keepdim=True), choose(rows, bits), bits)
    shape = (-1, *[1] * (weight.dim() - 1))
    return Grid(grid.delta.view(shape), grid.zero_point.view(shape), bits)


def search_tensor(x: torch.Tensor, bits: int) -> Grid:
    """One grid for all of `x`; delta and zero_point []."""
    rows = x.detach().reshape(1, -1)
    return candidate(*x.detach().aminmax(), choose(rows, bits).reshape(()), bits)


def search_histogram(histogram: Histogram, bits: int) -> Grid:
    """`search_tensor` of all that was added to `histogram`, from its bins. Raises ValueError for an empty one."""
    best = torch.tensor(choose_from_histogram(histogram, bits))
    return candidate(torch.tensor(histogram.low), torch.tensor(histogram.high), best, bits)


def candidate(low: torch.Tensor, high: torch.Tensor, index: torch.Tensor, bits: int) -> Grid:
    """The grid of the range [low, high], shrunken by `SHRINKS[index]`; all of one shape, or broadcast."""
    shrink = torch.tensor(SHRINKS)[index.cpu()].to(low.device)
    return grid_of_range(low.float() * shrink, high.float() * shrink, bits)


def choose(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """The index into `SHRINKS` that loses least, for each row of `rows` [O, n]; int64 [O, 1]."""
    rows = rows.float()
    low, high = rows.aminmax(dim=1, keepdim=True)
    # In units of the row's own size, since tiny numbers to the power 2.4 are zero in float32.
    size = rows.abs().amax(1, keepdim=True)
    losses = []
    for index in range(len(SHRINKS)):
        grid = candidate(low, high, torch.tensor(index), bits)
        relative = (rows - fake_quantize(rows, grid)).abs_().div_(size.where(size > 0, 1))
        losses.append(relative.pow_(POWER).sum(1, keepdim=True, dtype=torch.float64))
    return torch.stack(losses).argmin(0)


def choose_from_histogram(histogram: Histogram, bits: int) -> int:
    """The index into `SHRINKS` that loses least if every bin is filled evenly. Raises ValueError for an empty one."""
    edges, counts = histogram.edges_and_counts()
    # Most bins of a small or heavy-tailed sample are empty, and an edge between two of them tells nothing.
    filled = counts > 0
    kept = torch.zeros(len(edges), dtype=torch.bool)
    kept[:-1] |= filled
    kept[1:] |= filled
    counts = counts[kept.nonzero().flatten()[:-1]]
    # The bins at the ends reach past the values, and past the range's end a value would seem to be clipped.
    edges = edges[kept].clamp(histogram.low, histogram.high)
    width = edges.diff()
    density = torch.where(width > 0, counts / width.where(width > 0, 1), 0)
    grids = candidate(torch.tensor(histogram.low), torch.tensor(histogram.high), torch.arange(len(SHRINKS)), bits)
    losses = (_loss_up_to(edges, grids).diff(dim=1) * density).sum(1)
    # Where the largest value begins its bin, nothing of that bin is left but this value.
    largest = torch.tensor(histogram.high)
    losses += counts[width == 0].sum() * (largest - fake_quantize(largest, grids)).double().abs() ** POWER
    return int(losses.argmin())


def _loss_up_to(x: torch.Tensor, grids: Grid) -> torch.Tensor:
    """The integral of |u - fake_quantize(u)|^2.4 from 0 to each x [n], under each of the grids [k]; float64 [k, n]."""
    delta, zero_point = grids.delta.double().unsqueeze(1), grids.zero_point.double().unsqueeze(1)
    steps = x / delta
    nearest = steps.clamp(-zero_point, grids.largest_code - zero_point).round()
    # From 0 to its nearest grid value a number passes whole cells, two halves each; then a part of one, or what is cut.
    whole = nearest * 2 * _half_cell(torch.tensor(0.5, dtype=torch.float64))
    return (whole + _half_cell(steps - nearest)) * delta ** (POWER + 1)


def _half_cell(x: torch.Tensor) -> torch.Tensor:
    """The integral of |u|^2.4 from 0 to x."""
    return x.sign() * x.abs() ** (POWER + 1) / (POWER + 1)
