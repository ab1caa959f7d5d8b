"""The bands of an image, against averages written with a loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iec.method.bands import NUM_BANDS, split_bands


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blurred(image, factor):
    """Averages over squares of `factor` pixels, between whose centres is interpolated linearly; one channel."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    means = image.reshape(rows, factor, columns, factor).mean((1, 3))
    result = torch.empty_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            weights = []
            for place, count in ((i, rows), (j, columns)):
                centre = min(max((place + 0.5) / factor - 0.5, 0), count - 1)
                low = min(int(centre), count - 1)
                weights.append((low, min(low + 1, count - 1), centre - low))
            (a, b, u), (c, d, v) = weights
            result[i, j] = (1 - u) * ((1 - v) * means[a, c] + v * means[a, d]) + u * (
                (1 - v) * means[b, c] + v * means[b, d]
            )
    return result


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_the_bands_sum_to_the_image(batch, channels, height, width, seed):
    x = noise(batch, channels, height, width, seed=seed)
    bands = split_bands(x)
    assert bands.shape == (NUM_BANDS, *x.shape)
    torch.testing.assert_close(bands.sum(0), x, rtol=0, atol=1e-12)


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_constant_image_is_all_in_the_lowest_band(height, width):
    x = torch.tensor([2.0, -3.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, height, width)
    lowest, *others = split_bands(x)
    torch.testing.assert_close(lowest, x, rtol=0, atol=1e-12)
    assert all(band.abs().max() < 1e-12 for band in others)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24)])
def test_the_bands_are_averages_interpolated(height, width):
    x = noise(1, 1, height, width)
    below_8, below_2 = blurred(x[0, 0], 8), blurred(x[0, 0], 2)
    for band, expected in zip(split_bands(x), (below_8, below_2 - below_8, x[0, 0] - below_2), strict=True):
        torch.testing.assert_close(band[0, 0], expected, rtol=0, atol=1e-12)


def test_every_image_and_channel_is_split_alone():
    x = noise(2, 3, 12, 12)
    alone = torch.stack(
        [torch.stack([split_bands(x[b : b + 1, c : c + 1])[:, 0, 0] for c in range(3)]) for b in (0, 1)]
    )
    torch.testing.assert_close(split_bands(x), alone.movedim(2, 0), rtol=0, atol=1e-14)


def test_fine_stripes_are_in_the_highest_band():
    x = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    x[..., 1::2] = -1
    lowest, middle, highest = split_bands(x)
    assert lowest.abs().max() < 1e-12
    assert middle.abs().max() < 1e-12
    torch.testing.assert_close(highest, x)
