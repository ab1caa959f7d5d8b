import math

import pytest
import torch

import iec.evaluation.bootstrap as bootstrap_module
from iec.evaluation.bootstrap import (
    Estimate,
    bootstrap_frechet,
    bootstrap_kernel_difference,
    bootstrap_kernel_distance,
    bootstrap_mean,
    bootstrap_psnr,
)
from iec.evaluation.frechet import frechet_distance
from iec.evaluation.kernel import kernel_distance, kernel_terms
from iec.evaluation.psnr import mean_psnr, mean_squared_error
from iec.models.features import Reference


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("low", "high", "separable"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False)]
)
def test_an_estimate_is_separable_where_its_interval_excludes_zero(low, high, separable):
    assert Estimate((low + high) / 2, low, high).separable is separable


def test_interval_of_a_mean_covers_it_as_often_as_it_says():
    estimates = [bootstrap_mean(draw(60, 1, seed)[:, 0] + 3, replicates=300, seed=seed) for seed in range(200)]
    covered = sum(e.low <= 3 <= e.high for e in estimates) / 200
    assert 0.88 <= covered <= 0.985
    width = sum(e.high - e.low for e in estimates) / 200
    assert width == pytest.approx(2 * 1.96 / math.sqrt(60), rel=0.1)


def test_interval_of_the_kernel_distance_covers_its_closed_form_as_often_as_it_says():
    reference = draw(40, 1, seed=999)
    # Of x uniform on [0, 1], in one dimension, E x^p = 1 / (p + 1), and (x x' + 1)^3 multiplies out.
    m1, m2, m3 = 1 / 2, 1 / 3, 1 / 4
    within = m3**2 + 3 * m2**2 + 3 * m1**2 + 1
    cross = (m3 * reference**3 + 3 * m2 * reference**2 + 3 * m1 * reference + 1).mean().item()
    covered, values = 0, []
    for seed in range(150):
        x = torch.rand(60, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        terms = kernel_terms(x, reference)
        truth = within - 2 * cross + terms.reference
        estimate = bootstrap_kernel_distance(terms, replicates=300, seed=seed)
        covered += estimate.low <= truth <= estimate.high
        values.append(estimate.value - truth)
    assert 0.87 <= covered / 150 <= 0.99
    errors = torch.tensor(values)
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(150)


def test_resampled_kernel_distances_lie_around_the_value_and_not_above():
    terms = kernel_terms(draw(20, 8, 0), draw(50, 8, 1))
    estimate = bootstrap_kernel_distance(terms, replicates=4000)
    assert estimate.value == pytest.approx(kernel_distance(terms).item(), rel=1e-13)  # summed in another order
    # Counting pairs of an image with its own copy would lift the whole interval above the value.
    shift = terms.within.diagonal().mean().item() / 20
    assert estimate.low < estimate.value < estimate.high
    assert abs((estimate.low + estimate.high) / 2 - estimate.value) < shift / 3


def test_difference_of_a_set_with_itself_is_exactly_zero():
    terms = kernel_terms(draw(30, 4, 0), draw(40, 4, 1))
    assert bootstrap_kernel_difference(terms, terms) == Estimate(0.0, 0.0, 0.0)


def test_pairing_separates_what_two_intervals_cannot():
    reference, shared = draw(200, 4, 0), draw(100, 4, 1)
    a, b = kernel_terms(shared * 1.3, reference), kernel_terms(shared * 1.25, reference)
    paired = bootstrap_kernel_difference(a, b)
    alone_a, alone_b = bootstrap_kernel_distance(a), bootstrap_kernel_distance(b)
    assert paired.value == pytest.approx(alone_a.value - alone_b.value)
    assert paired.separable
    assert alone_b.high > alone_a.low
    # The same images in another order are no longer pairs.
    unpaired = bootstrap_kernel_difference(a, kernel_terms(shared.flip(0) * 1.25, reference))
    assert unpaired.value == pytest.approx(paired.value)
    assert unpaired.high - unpaired.low > 3 * (paired.high - paired.low)


def test_swapping_the_sets_of_a_difference_swaps_its_sign():
    reference = draw(50, 4, 0)
    a, b = kernel_terms(draw(30, 4, 1), reference), kernel_terms(draw(30, 4, 2), reference)
    forth, back = bootstrap_kernel_difference(a, b), bootstrap_kernel_difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-forth.value, -forth.high, -forth.low))


def test_frechet_value_is_the_plain_distance():
    features, reference = draw(40, 3, 0) + 0.5, Reference.of(draw(200, 3, 1))
    plain = frechet_distance(features.mean(0), torch.cov(features.T), reference.mean, reference.covariance)
    assert bootstrap_frechet(features, reference).value == pytest.approx(plain, rel=1e-9)


def test_the_frechet_interval_covers_what_other_images_give_on_average():
    d, n = 6, 50
    mean, scales = torch.full((d,), 0.3, dtype=torch.float64), torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    reference = Reference(torch.zeros(2, d), torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    found = [bootstrap_frechet(draw(n, d, s) * scales + mean, reference) for s in range(200)]
    average = sum(estimate.value for estimate in found) / len(found)
    covered = sum(estimate.low <= average <= estimate.high for estimate in found) / len(found)
    halved = sum(abs(e.value - average) <= (e.high - e.low) / 4 for e in found) / len(found)
    assert covered > 0.85
    assert halved < 0.85  # an interval half as wide would not do


@pytest.mark.parametrize("chunk", [1, 70, 4_000_000])
def test_intervals_depend_on_the_seed_alone(monkeypatch, chunk):
    terms, values = kernel_terms(draw(30, 4, 0), draw(40, 4, 1)), draw(30, 1, 2)[:, 0]
    expected = bootstrap_kernel_distance(terms, 50, seed=1), bootstrap_mean(values, 50, seed=1)
    monkeypatch.setattr(bootstrap_module, "CHUNK", chunk)
    torch.manual_seed(chunk)
    again = bootstrap_kernel_distance(terms, 50, seed=1), bootstrap_mean(values, 50, seed=1)
    for one, other in zip(expected, again, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), rel=1e-12)
    assert bootstrap_mean(values, 50, seed=2) != expected[1]


def test_interval_of_the_psnr_is_finite_with_identical_images_and_ordered():
    a = torch.randint(0, 200, (20, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    b = a.clone()
    b[5:] += torch.arange(15, dtype=torch.uint8).view(-1, 1, 1, 1)
    estimate = bootstrap_psnr(mean_squared_error(a, b))
    assert estimate.value == pytest.approx(mean_psnr(a, b))
    assert 0 < estimate.low < estimate.value < estimate.high < math.inf


def test_too_few_images_are_refused():
    terms = kernel_terms(draw(9, 4, 0), draw(40, 4, 1))
    for estimate in (
        lambda: bootstrap_kernel_distance(terms),
        lambda: bootstrap_kernel_difference(terms, terms),
        lambda: bootstrap_mean(torch.ones(9)),
        lambda: bootstrap_frechet(draw(9, 4, 0), Reference.of(draw(40, 4, 1))),
    ):
        with pytest.raises(ValueError, match="at least 10 images, but there are 9"):
            estimate()


def test_what_cannot_be_resampled_is_refused():
    a, b = kernel_terms(draw(20, 4, 0), draw(40, 4, 1)), kernel_terms(draw(21, 4, 0), draw(40, 4, 1))
    with pytest.raises(ValueError, match="as many images in both sets, not 20 and 21"):
        bootstrap_kernel_difference(a, b)
    with pytest.raises(ValueError, match="replicates must be at least 1"):
        bootstrap_kernel_distance(a, replicates=0)
    with pytest.raises(ValueError, match="needs finite values"):
        bootstrap_mean(torch.tensor([math.inf] * 20))
