import math

import numpy as np
import pytest
import torch

from iec.evaluation.psnr import decibels, mean_psnr, mean_squared_error, psnr


def draw(seed: int, n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_psnr_is_its_definition():
    a, b = draw(0), draw(1)
    error = np.mean((a.numpy().astype(float) - b.numpy().astype(float)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(mean_squared_error(a, b).numpy(), error)
    np.testing.assert_allclose(psnr(a, b).numpy(), 10 * np.log10(255**2 / error))


def test_black_against_white_is_zero_decibels_both_ways():
    black, white = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert psnr(black, white).item() == pytest.approx(0, abs=1e-12)
    assert psnr(white, black).item() == pytest.approx(0, abs=1e-12)


def test_off_by_one_everywhere_is_48_decibels():
    image = draw(0) // 2
    assert psnr(image + 1, image).tolist() == pytest.approx([20 * math.log10(255)] * 3)


def test_identical_images_are_infinite_but_leave_the_mean_finite():
    a, b = draw(0), draw(1)
    b[0] = a[0]
    values = psnr(a, b)
    assert values[0] == math.inf
    assert values[1:].isfinite().all()
    error = np.mean((a.numpy().astype(float) - b.numpy().astype(float)) ** 2)
    assert mean_psnr(a, b) == pytest.approx(10 * math.log10(255**2 / error))
    assert mean_psnr(a, a) == math.inf


def test_decibels_of_squared_errors():
    assert decibels(torch.tensor([255.0**2, 6.5025, 0.0], dtype=torch.float64)).tolist() == pytest.approx(
        [0.0, 40.0, math.inf], abs=1e-12
    )


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (draw(0).float(), draw(1), "type uint8"),
        (draw(0), draw(1).float(), "type uint8"),
        (draw(0), draw(1, n=2), "one shape"),
        (draw(0)[0], draw(1)[0], "one shape"),
        (draw(0)[:0], draw(1)[:0], "at least one image"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(a, b, sentence):
    with pytest.raises(ValueError, match=sentence):
        psnr(a, b)
