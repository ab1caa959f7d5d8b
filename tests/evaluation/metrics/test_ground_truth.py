"""Frechet and kernel distance, score, precision and recall: closed forms, brute force, and torchmetrics."""

import itertools
import math

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from iec.evaluation.image_sets import TensorImages
from iec.evaluation.metrics.cifar import CifarExtractor
from iec.evaluation.metrics.distances import frechet_figure, kernel_figure
from iec.evaluation.metrics.extractor import Features, Titles
from iec.evaluation.metrics.feature_set import FeatureSet, Gaussian, collect
from iec.evaluation.metrics.inception_score import inception_score, score_figure
from iec.evaluation.metrics.precision_recall import precision_recall, within_neighbourhoods
from iec.models.features import load_feature_network, normalize


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_images(n, seed=0):
    """Smooth images, so that the network's features differ from image to image."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    return (fine * 255).to(torch.uint8)


def whitened(n, d, seed=0):
    """Points with mean 0 and covariance 1 exactly."""
    x = draw(n, d, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def feature_set(pooled, **others):
    return FeatureSet(len(pooled), Gaussian(pooled.mean(0), torch.cov(pooled.T)), kept=Features(pooled, **others))


def test_the_distance_of_two_gaussians_has_its_closed_form():
    scales_a, scales_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.5]).double()
    a, b = whitened(50, 3, 1) * scales_a + 1, whitened(70, 3, 2) * scales_b
    figure = frechet_figure("FD", feature_set(a), feature_set(b))
    assert figure.estimate.value == pytest.approx(3 * 1 + 1 + 0 + 2.5**2, rel=1e-9)
    assert figure.estimate.low < figure.estimate.value < figure.estimate.high
    assert (figure.images, figure.better) == (50, "lower")


@pytest.mark.parametrize(
    ("n", "reference_n", "sentence"),
    [
        (12, 40, "12 images are fewer than needed for 16 features; their covariance has rank 11"),
        (40, 12, "the reference has 12 images for 16 features; its covariance has rank 11"),
        (40, 40, "FD of 40 images is biased upwards: below 10,000 images"),
        (10_000, 40, ""),
    ],
)
def test_a_frechet_distance_says_where_it_says_little(n, reference_n, sentence):
    warning = frechet_figure("FD", feature_set(draw(n, 16)), feature_set(draw(reference_n, 16, 1))).warning
    assert sentence in warning
    assert bool(warning) == bool(sentence)


def test_statistics_of_another_network_are_refused():
    with pytest.raises(ValueError, match="of 5 features, but the extractor has 4"):
        frechet_figure("FD", feature_set(draw(20, 4)), feature_set(draw(20, 5)))


def test_the_kernel_distance_is_that_of_all_pairs():
    x, y = draw(12, 3, 1), draw(15, 3, 2)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    def mean(pairs):
        values = [kernel(a, b).item() for a, b in pairs]
        return sum(values) / len(values)

    expected = (
        mean(itertools.permutations(x, 2)) + mean(itertools.permutations(y, 2)) - 2 * mean(itertools.product(x, y))
    )
    figure = kernel_figure("KD", feature_set(x), feature_set(y))
    assert figure.estimate.value == pytest.approx(expected, rel=1e-9)
    assert figure.warning == ""


def test_the_kernel_distance_needs_the_images_of_the_reference():
    statistics = FeatureSet(None, Gaussian(torch.zeros(3), torch.eye(3)))
    with pytest.raises(ValueError, match="needs the images of the reference"):
        kernel_figure("KD", feature_set(draw(12, 3)), statistics)


def test_the_score_of_images_sure_of_their_classes_is_the_number_of_classes():
    logits = 1000 * torch.eye(4).repeat(5, 1)
    assert inception_score(logits).value == pytest.approx(4)
    assert inception_score(torch.ones(20, 4)).value == pytest.approx(1)
    # Half of the images surely of one class, half without any idea of two: by hand.
    mixed = torch.tensor([[1000.0, 0.0], [0.0, 0.0]]).repeat(10, 1)
    sure, unsure = -math.log(3 / 4), 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert inception_score(mixed).value == pytest.approx(math.exp((sure + unsure) / 2))


def test_precision_and_recall_agree_with_the_definition_image_by_image():
    x, y = draw(25, 2, 1), draw(31, 2, 2) * 1.5 + 0.5

    def inside(points, centres, k):
        found = []
        for point in points:
            hits = []
            for i, centre in enumerate(centres):
                others = sorted((centre - other).norm().item() for j, other in enumerate(centres) if j != i)
                hits.append((point - centre).norm().item() <= others[k - 1])
            found.append(any(hits))
        return sum(found) / len(found)

    for k in (1, 3):
        precision, recall = precision_recall(x, y, k)
        assert precision.value == pytest.approx(inside(x, y, k))
        assert recall.value == pytest.approx(inside(y, x, k))
    assert 0 < inside(x, y, 1) < 1  # else this says nothing


def test_neighbourhoods_do_not_depend_on_how_they_are_computed(monkeypatch):
    import iec.evaluation.metrics.precision_recall as module

    x, y = draw(25, 2, 1), draw(31, 2, 2) * 1.5
    expected = within_neighbourhoods(x, y)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert torch.equal(within_neighbourhoods(x, y), expected)


def test_precision_and_recall_of_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least 10 images on each side, but there are 9 and 20"):
        precision_recall(draw(9, 2), draw(20, 2))


class Pooled(nn.Module):
    """Our extractor as torchmetrics wants it."""

    def __init__(self, name, size):
        super().__init__()
        self.name, self.num_features, self.extractor = name, size, CifarExtractor()

    def forward(self, images):
        return getattr(self.extractor(images), self.name)


@pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features in buffer:UserWarning")
@pytest.mark.filterwarnings("ignore:std... degrees of freedom is:UserWarning")  # over its one split
def test_the_figures_agree_with_torchmetrics_on_our_extractor():
    images, real = draw_images(200, 1), draw_images(200, 2).flip(3) // 2
    ours, theirs = (collect(TensorImages(part), CifarExtractor()) for part in (images, real))

    frechet = FrechetInceptionDistance(feature=Pooled("pooled", 128)).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=Pooled("pooled", 128), subsets=1, subset_size=200)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(images, real=False)
    score = InceptionScore(feature=Pooled("logits", 10), splits=1)
    score.update(images)

    value = frechet_figure("FD-cifar", ours, theirs).estimate.value
    assert value == pytest.approx(frechet.compute().item(), rel=1e-4)
    assert value > 0.1
    value = kernel_figure("KD-cifar", ours, theirs).estimate.value
    assert value == pytest.approx(kernel.compute()[0].item(), rel=1e-4)
    assert score_figure("IS-cifar", ours).estimate.value == pytest.approx(score.compute()[0].item(), rel=1e-4)


def test_the_cifar_extractor_sees_what_the_network_sees():
    network, images = load_feature_network(), draw_images(6)
    features = CifarExtractor(network)(images)
    pooled = network(normalize(images))
    torch.testing.assert_close(features.pooled, pooled)
    torch.testing.assert_close(features.logits, network.logits(pooled))
    maps = []
    handle = network.body[4].register_forward_hook(lambda module, inputs, output: maps.append(output))
    network(normalize(images))
    handle.remove()
    torch.testing.assert_close(features.spatial, maps[0][:, :7].reshape(6, 448))
    assert CifarExtractor.titles == Titles("FD-cifar", "KD-cifar", "sFD-cifar", "IS-cifar", "precision-cifar", "recall-cifar")  # fmt: skip # noqa: E501
    with pytest.raises(ValueError, match="these are 16x8 of 1"):
        CifarExtractor().require_shape((1, 8, 16))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_streamed_in_batches_are_those_of_all_images_at_once(batch_size):
    images = draw_images(40)
    whole = CifarExtractor()(images)
    found = collect(TensorImages(images), CifarExtractor(), batch_size)
    torch.testing.assert_close(found.pooled.mean, whole.pooled.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.pooled.covariance, torch.cov(whole.pooled.double().T), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.spatial.covariance, torch.cov(whole.spatial.double().T), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.kept.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert found.n == 40


@pytest.mark.parametrize("batch_size", [3, 40])
def test_a_bounded_choice_of_features_is_kept_whatever_the_batches(batch_size):
    images = draw_images(40)
    few = collect(TensorImages(images), CifarExtractor(), batch_size, kept=10)
    again = collect(TensorImages(images), CifarExtractor(), 40, kept=10)
    every = CifarExtractor()(images).pooled
    assert len(few.kept.pooled) == len(few.kept.logits) == len(few.kept.spatial) == 10
    torch.testing.assert_close(few.kept.pooled, again.kept.pooled, rtol=1e-4, atol=1e-5)
    places = torch.cdist(few.kept.pooled, every).argmin(1)
    assert len(places.unique()) == 10
    assert not torch.equal(places, torch.arange(10))  # a choice, not the first ones
    torch.testing.assert_close(few.pooled.mean, every.double().mean(0), rtol=1e-5, atol=1e-6)


def test_spatial_figures_use_spatial_features():
    images, real = (collect(TensorImages(draw_images(600, seed)), CifarExtractor()) for seed in (1, 2))
    pooled, spatial = frechet_figure("FD", images, real), frechet_figure("sFD", images, real, spatial=True)
    assert "of 600 images is biased" in spatial.warning  # 448 features: no want of rank
    assert spatial.estimate.value != pytest.approx(pooled.estimate.value, rel=1e-3)
    with pytest.raises(ValueError, match="sFD needs spatial features"):
        frechet_figure("sFD", images, feature_set(real.kept.pooled), spatial=True)
