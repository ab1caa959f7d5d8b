"""Noise that depends on an image's seed and index alone."""

import pytest
import torch

from iec.method import image_generator, initial_noise
from iec.method.noise import CALIBRATION_OFFSET, MAX_SEED


def noise(seed, indices, shape=(3, 4, 4)):
    return initial_noise([image_generator(seed, index) for index in indices], shape)


def test_an_image_has_the_same_noise_alone_and_among_others():
    together = noise(7, range(5))
    assert together.shape == (5, 3, 4, 4)
    for index in range(5):
        assert torch.equal(noise(7, [index])[0], together[index])
    assert torch.equal(noise(7, [4, 2]), together[[4, 2]])


def test_the_seed_of_an_image_is_a_million_times_the_seed_plus_the_index():
    expected = torch.randn(2, 5, generator=torch.Generator().manual_seed(3_000_042))
    assert torch.equal(noise(3, [42], (2, 5))[0], expected)


def test_no_two_images_share_their_noise():
    drawn = torch.cat([noise(0, [0, 1, 999_999]), noise(1, [0, 1]), noise(1999, [0])]).flatten(1)
    assert len({tuple(row.tolist()) for row in drawn}) == 6


def test_the_noise_is_standard_normal_float32():
    drawn = noise(0, range(2000), (8,))
    assert drawn.dtype == torch.float32
    assert drawn.mean().abs() < 4 / drawn.numel() ** 0.5
    assert (drawn.var() - 1).abs() < 4 * (2 / drawn.numel()) ** 0.5


def test_it_is_float32_whatever_the_default_dtype():
    expected = noise(1, [2])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(noise(1, [2]), expected)
    finally:
        torch.set_default_dtype(before)


def test_a_generator_goes_on_where_it_was():
    generator = image_generator(0, 0)
    first, second = initial_noise([generator], (4,)), initial_noise([generator], (4,))
    assert torch.equal(first, noise(0, [0], (4,)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [-1, 4000, 10**9])
def test_a_seed_outside_its_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must lie in"):
        image_generator(seed, 0)


@pytest.mark.parametrize("index", [-1, 1_000_000])
def test_an_index_that_would_run_into_the_next_seed_is_refused(index):
    with pytest.raises(ValueError, match=f"index of an image must lie in 0..999999, but is {index}"):
        image_generator(0, index)


def test_calibration_seeds_lie_beyond_the_sampling_seeds():
    assert CALIBRATION_OFFSET > MAX_SEED
    image_generator(MAX_SEED + CALIBRATION_OFFSET, 0)


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="one generator for each image"):
        initial_noise([], (3, 8, 8))
