import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iec.evaluation.frechet import (
    Moments,
    frechet_distance,
    frechet_influence,
    is_rank_deficient,
    square_root,
)


def draw(n: int, d: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return spread * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing


def moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.mean(0), torch.cov(features.T)


@pytest.mark.parametrize("seed", range(5))
def test_distance_agrees_with_the_matrix_square_root_of_scipy(seed):
    (mean_a, a), (mean_b, b) = moments(draw(60, 12, seed)), moments(draw(80, 12, seed + 100, spread=2) + 0.5)
    root = np.real(scipy.linalg.sqrtm(a.numpy() @ b.numpy()))
    expected = ((mean_a - mean_b) ** 2).sum().item() + np.trace(a.numpy() + b.numpy() - 2 * root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-9)


def test_distance_of_gaussians_with_diagonal_covariances_has_its_closed_form():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    a, b = torch.tensor([4.0, 9.0, 0.25]), torch.tensor([1.0, 16.0, 2.25])
    expected = 1 + 9 + (2 - 1) ** 2 + (3 - 4) ** 2 + (0.5 - 1.5) ** 2
    assert frechet_distance(mean_a, a.diag(), mean_b, b.diag()) == pytest.approx(expected, rel=1e-12)


def test_distance_of_singular_covariances_is_exact():
    mean = torch.zeros(2)
    assert frechet_distance(mean, torch.diag(torch.tensor([1.0, 0.0])), mean, torch.diag(torch.tensor([0.0, 4.0]))) == 5


def test_distance_is_zero_to_itself_even_where_the_covariance_is_singular():
    mean, covariance = moments(draw(6, 20, seed=3))
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-5)


def test_distance_is_symmetric_and_computed_in_float64():
    (mean_a, a), (mean_b, b) = moments(draw(50, 8, 1)), moments(draw(50, 8, 2))
    forth = frechet_distance(mean_a.float(), a.float(), mean_b.float(), b.float())
    back = frechet_distance(mean_b.float().double(), b.float().double(), mean_a.float().double(), a.float().double())
    assert forth == pytest.approx(back, rel=1e-12)


def test_square_root_squares_to_the_covariance():
    _, covariance = moments(draw(30, 7, 5))
    root = square_root(covariance)
    torch.testing.assert_close(root @ root, covariance)
    torch.testing.assert_close(root, root.T)


EYE, ZERO = torch.eye(2), torch.zeros(2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((torch.zeros(3), EYE, ZERO, EYE), "means must be two vectors"),
        ((ZERO, torch.eye(3), ZERO, EYE), "must be .2, 2. to match the means"),
        ((ZERO, EYE, ZERO, torch.zeros(2, 3)), "must be .2, 2. to match the means"),
        ((ZERO, torch.zeros(2, 3), ZERO, EYE), "must be a square matrix"),
        ((torch.tensor([0.0, torch.nan]), EYE, ZERO, EYE), "mean holds values that are not finite"),
        ((ZERO, EYE * torch.inf, ZERO, EYE), "covariance holds values that are not finite"),
        ((ZERO, EYE, ZERO, EYE * torch.nan), "covariance holds values that are not finite"),
        ((ZERO, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ZERO, EYE), "must be symmetric"),
        ((ZERO, EYE, ZERO, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric"),
        ((ZERO, torch.diag(torch.tensor([1.0, -0.5])), ZERO, EYE), "no negative eigenvalue"),
        ((ZERO, EYE, ZERO, torch.diag(torch.tensor([1.0, -0.5]))), "no negative eigenvalue"),
    ],
)
def test_what_is_no_pair_of_gaussians_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        frechet_distance(*arguments)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 2))
def test_moments_do_not_depend_on_how_the_features_were_split(sizes):
    features = draw(sum(sizes), 5, seed=7) + 1e6
    moments = Moments(5)
    for batch in torch.split(features, sizes):
        moments.add(batch)
    assert moments.n == len(features)
    torch.testing.assert_close(moments.mean, features.mean(0), rtol=1e-14, atol=0)
    # Computed as a mean of squares, this would lose all digits to the mean of a million.
    torch.testing.assert_close(moments.covariance, torch.cov((features - 1e6).T), rtol=1e-6, atol=1e-7)


def test_moments_keep_what_they_gave_away_and_take_float32_as_float64():
    moments = Moments(3)
    features = draw(4, 3, 0).float()
    moments.add(features)
    before = moments.mean
    moments.add(features + 1)
    torch.testing.assert_close(before, features.double().mean(0))
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(4, 2), "must be .B, 3."),
        (torch.zeros(3), "must be .B, 3."),
        (torch.tensor([[0.0, torch.inf, 0.0]]), "not finite"),
    ],
)
def test_moments_refuse_what_they_cannot_take_in(batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        Moments(3).add(batch)


def test_moments_of_too_few_images_are_refused():
    moments = Moments(3)
    with pytest.raises(ValueError, match="at least 1 image, but there is none"):
        _ = moments.mean
    with pytest.raises(ValueError, match="at least 2 images, but there is none"):
        _ = moments.covariance
    moments.add(torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least 2 images, but there is 1"):
        _ = moments.covariance


@pytest.mark.parametrize("n", [4, 6, 7, 12])
def test_rank_deficiency_is_foretold(n):
    rank = torch.linalg.matrix_rank(torch.cov(draw(n, 6, seed=n).T), hermitian=True).item()
    assert is_rank_deficient(n, 6) == (rank < 6)


def test_influence_is_the_derivative_of_the_distance_to_the_weight_of_an_image():
    n, mean_a, a = 400, torch.full((4,), 0.2, dtype=torch.float64), moments(draw(90, 4, 1))[1]
    features = draw(n, 4, 2, spread=0.7)

    def distance(weights):
        mean = weights @ features / weights.sum()
        centred = features - mean
        return frechet_distance(mean_a, a, mean, (centred.T * weights) @ centred / weights.sum())

    ones = torch.ones(n, dtype=torch.float64)
    biased = torch.cov(features.T, correction=0)
    influence = frechet_influence(features, mean_a, square_root(a), features.mean(0), biased)
    for i in (0, 7, 399):
        step = torch.zeros(n, dtype=torch.float64)
        step[i] = 1e-3
        derivative = (distance(ones + step) - distance(ones - step)) / 2e-3
        assert influence[i].item() / n == pytest.approx(derivative, rel=1e-4)


def test_influence_is_finite_where_the_covariance_is_singular():
    features = draw(12, 20, 3)
    mean, covariance = moments(features)
    influence = frechet_influence(features, torch.zeros(20), square_root(torch.eye(20)), mean, covariance)
    assert torch.isfinite(influence).all()
