"""The corrected output h^_i = h_i + sum_j lambda_ij (h_{i-j+1} - h_{i-j}) + b_i, from the outputs made so far.

h is the model output in the variable in which the sampler's ODE is straight: the noise prediction for
variance-preserving schedules, the velocity for flow matching.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from iec.method.bands import split_bands, weighted_bands


def differences(outputs: Sequence[torch.Tensor], history: int) -> list[torch.Tensor]:
    """h_{i-j+1} - h_{i-j} for j = 1 .. `history`, newest first, of outputs [B, ...], newest last.

    A difference whose outputs were not made yet is left out.
    """
    recent = list(reversed(outputs[-history - 1 :])) if history else []
    return [newer - older for newer, older in pairwise(recent)]


def features(difference: torch.Tensor, num_bands: int, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """The parts [num_bands, B, ...] of a difference that get a coefficient each: itself, or its frequency bands.

    grid: rows and columns of tokens [B, rows * columns, 4 c], each 2 x 2 pixels; None where it is [B, C, H, W].
    """
    if num_bands == 1:
        return difference[None]
    if grid is None:
        return split_bands(difference)
    return torch.stack([_packed(band, grid) for band in split_bands(_unpacked(difference, grid))])


def correction_term(
    outputs: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    constant: torch.Tensor | None = None,
    channel_axis: int = 1,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor | None:
    """sum_j lambda_ij (h_{i-j+1} - h_{i-j}) + b_i, of the shape of an output; None where it has no term.

    outputs: raw outputs, newest last. coefficients: lambda_i [m], or [m, bands]. constant: b_i, one per channel.
    """
    by_band = coefficients.reshape(len(coefficients), -1).to(outputs[-1].device, outputs[-1].dtype)
    parts = differences(outputs, len(by_band))
    total = _weighted(parts, by_band[: len(parts)], grid) if parts else None
    if constant is None:
        return total
    shape = [1] * outputs[-1].dim()
    shape[channel_axis] = -1
    shift = constant.to(outputs[-1].device, outputs[-1].dtype).view(shape)
    return shift.expand_as(outputs[-1]) if total is None else total + shift


def _weighted(parts: list[torch.Tensor], weights: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """sum_j sum_k weights[j, k] of band k of part j."""
    if weights.shape[1] > 1:
        if grid is None:
            return weighted_bands(parts, weights)
        return _packed(weighted_bands([_unpacked(part, grid) for part in parts], weights), grid)
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total = total + weight * part
    return total


class OutputHistory:
    """The outputs of a run at its latest timesteps, `length` differences long.

    timesteps: those of the whole run. One that they list several times is passed several times by the same state, and
    only its latest output counts. One that comes more often is stepped by several states in turn (a panorama's views),
    and each of them has a history of its own. A timestep against the run's direction, or the first one again, begins
    anew.
    """

    def __init__(self, timesteps: Sequence[float], length: int) -> None:
        self._length = length
        self._listed: dict[float, int] = {}
        for timestep in timesteps:
            self._listed[timestep] = self._listed.get(timestep, 0) + 1
        self._first = timesteps[0] if len(timesteps) else None
        self._upwards = len(timesteps) > 1 and timesteps[-1] > timesteps[0]
        self._timestep: float | None = None
        self._calls = 0
        self._lanes: list[list[torch.Tensor]] = []

    def add(self, timestep: float, output: torch.Tensor) -> list[torch.Tensor]:
        """Take the raw output at `timestep`, and return the outputs of its state so far, newest last."""
        if self._begins(timestep):
            self._lanes, self._timestep = [], None
        again = timestep == self._timestep
        self._calls = self._calls + 1 if again else 1
        self._timestep = timestep
        lane, repeats = divmod(self._calls - 1, self._listed.get(timestep, 1))
        while len(self._lanes) <= lane:
            self._lanes.append([])
        kept = self._lanes[lane]
        if kept and kept[-1].shape != output.shape:  # another number of images: their histories do not match
            kept.clear()
        if repeats and kept:
            kept.pop()
        kept.append(output)
        del kept[: -self._length - 1]
        return kept

    def _begins(self, timestep: float) -> bool:
        last = self._timestep
        if last is None or timestep == last:
            return False
        return timestep == self._first or (timestep > last) != self._upwards


def _unpacked(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    rows, columns = grid
    by_place = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return by_place.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * rows, 2 * columns)


def _packed(image: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    rows, columns = grid
    by_place = image.reshape(len(image), -1, rows, 2, columns, 2)
    return by_place.permute(0, 2, 4, 1, 3, 5).reshape(len(image), rows * columns, -1)
