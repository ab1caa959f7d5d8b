import pytest
import torch

import iec.evaluation.kernel as kernel_module
from iec.evaluation.kernel import kernel_distance, kernel_terms, mean_kernel_within, polynomial_kernel


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def k(a: torch.Tensor, b: torch.Tensor) -> float:
    return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / len(a) + 1) ** 3


def brute_force(x: torch.Tensor, y: torch.Tensor, origin: list[int] | None = None) -> float:
    """The textbook estimator; pairs of rows of x with one origin are left out."""
    origin = list(range(len(x))) if origin is None else origin
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if origin[i] != origin[j]]
    within_x = sum(k(x[i], x[j]) for i, j in pairs) / len(pairs)
    m = len(y)
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    cross = sum(k(a, b) for a in x for b in y) / (len(x) * m)
    return within_x + within_y - 2 * cross


def test_distance_is_the_textbook_unbiased_estimator():
    x, y = draw(7, 4, 0) + 0.3, draw(9, 4, 1)
    assert kernel_distance(kernel_terms(x, y)).item() == pytest.approx(brute_force(x, y), rel=1e-12)


def test_equal_weights_of_any_size_change_nothing():
    terms = kernel_terms(draw(7, 4, 0) + 0.3, draw(9, 4, 1))
    weights = torch.ones(7) * torch.tensor([[1.0], [2.5]])
    torch.testing.assert_close(kernel_distance(terms, weights), kernel_distance(terms).expand(2))


@pytest.mark.parametrize("counts", [[2, 0, 1, 3, 0, 1], [1, 1, 0, 0, 0, 0], [5, 1, 1, 1, 1, 1]])
def test_weights_stand_for_copies_whose_pairs_are_left_out(counts):
    x, y = draw(6, 3, 2) + 0.2, draw(5, 3, 3)
    origin = [i for i, count in enumerate(counts) for _ in range(count)]
    expected = brute_force(x[origin], y, origin)
    weighted = kernel_distance(kernel_terms(x, y), torch.tensor(counts))
    assert weighted.item() == pytest.approx(expected, rel=1e-12)


def test_rows_of_weights_are_independent():
    terms = kernel_terms(draw(6, 3, 2), draw(5, 3, 3))
    weights = torch.randint(0, 4, (4, 6), generator=torch.Generator().manual_seed(0)) + torch.eye(6)[:4]
    rows = torch.stack([kernel_distance(terms, row) for row in weights])
    torch.testing.assert_close(kernel_distance(terms, weights), rows)


def test_chunks_change_nothing(monkeypatch):
    x, y = draw(23, 4, 4), draw(31, 4, 5)
    whole = kernel_terms(x, y)
    monkeypatch.setattr(kernel_module, "CHUNK", 5)
    parts = kernel_terms(x, y)
    torch.testing.assert_close(parts.cross, whole.cross)
    assert parts.reference == pytest.approx(whole.reference, rel=1e-12)


def test_the_references_own_term_can_be_handed_over():
    x, y = draw(6, 3, 2), draw(5, 3, 3)
    given = kernel_terms(x, y, mean_kernel_within(y))
    assert kernel_distance(given).item() == kernel_distance(kernel_terms(x, y)).item()
    assert kernel_terms(x, y, 7.0).reference == 7.0


def test_distance_of_two_samples_of_one_distribution_is_zero_on_average():
    distances = torch.stack(
        [kernel_distance(kernel_terms(draw(12, 3, 2 * s), draw(12, 3, 2 * s + 1))) for s in range(400)]
    )
    error = distances.std() / 20
    assert abs(distances.mean()) < 4 * error
    # The estimator that keeps the pairs i = j would be far outside.
    own = polynomial_kernel(draw(400, 3, 0), draw(400, 3, 0)).diagonal().mean() / 12
    assert own > 10 * error


def test_distance_is_computed_in_float64_from_float32_features():
    x, y = draw(50, 16, 6).float(), draw(60, 16, 7).float()
    assert kernel_distance(kernel_terms(x, y)).item() == kernel_distance(kernel_terms(x.double(), y.double())).item()


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (torch.ones(1, 3), torch.ones(4, 3), "at least 2 images"),
        (torch.ones(4, 3), torch.ones(1, 3), "at least 2 reference images"),
        (torch.ones(4), torch.ones(4, 3), "at least 2 images"),
        (torch.ones(4, 2), torch.ones(4, 3), "2 dimensions, but those of the reference have 3"),
        (torch.full((4, 3), torch.nan), torch.ones(4, 3), "features of the images hold values"),
        (torch.ones(4, 3), torch.full((4, 3), torch.inf), "features of the reference images hold values"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(x, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        kernel_terms(x, y)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (torch.ones(3), "must be .*, 4., one per image"),
        (torch.tensor([1.0, 1.0, -1.0, 1.0]), "finite and not negative"),
        (torch.tensor([1.0, 1.0, torch.nan, 1.0]), "finite and not negative"),
        (torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]]), "at least two images"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        kernel_distance(kernel_terms(draw(4, 3, 0), draw(5, 3, 1)), weights)
