"""torch-fidelity and lpips: their networks and figures; slow, and only where the extras are installed."""

import importlib.util

import pytest
import torch

import iec.evaluation.metrics.extras as extras
from iec.evaluation.image_sets import TensorImages
from iec.evaluation.metrics.cifar import CifarExtractor
from iec.evaluation.metrics.distances import frechet_figure, kernel_figure
from iec.evaluation.metrics.feature_set import collect
from iec.evaluation.metrics.inception import InceptionExtractor
from iec.evaluation.metrics.inception_score import score_figure
from iec.evaluation.metrics.lpips import Lpips
from iec.evaluation.metrics.precision_recall import precision_recall

needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None,
    reason="the extra 'fid' (torch-fidelity) is not installed: it needs torchvision, which the tests do without",
)
needs_lpips = pytest.mark.skipif(
    importlib.util.find_spec("lpips") is None,
    reason="the extra 'lpips' is not installed: it needs torchvision, which the tests do without",
)


def draw(n, seed, size=32):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


@pytest.mark.parametrize(("make", "extra"), [(InceptionExtractor, "fid"), (Lpips, "lpips")])
def test_a_missing_extra_is_one_sentence_that_says_what_to_install(monkeypatch, make, extra):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(ValueError, match=rf"needs the extra '{extra}', .* pip install 'iec-diffusion\[{extra}\]'"):
        make()


@pytest.mark.slow
@needs_fidelity
@pytest.mark.filterwarnings("ignore")
def test_figures_agree_with_torch_fidelity_on_our_extractor(tmp_path):
    from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor

    class Ours(FeatureExtractorBase):
        def __init__(self, name, features_list, **settings):
            super().__init__(name, features_list)
            self.extractor = CifarExtractor()

        @staticmethod
        def get_provided_features_list():
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "pooled"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

        def forward(self, images):
            features = self.extractor(images)
            return (
                self.convert_features_tuple_to_dict_order(features)
                if False
                else tuple(getattr(features, name) for name in self.features_list)
            )

    register_feature_extractor("ours", Ours)
    images, real = draw(150, 1), draw(150, 2).flip(3) // 2
    theirs = calculate_metrics(
        input1=Images(images), input2=Images(real), cuda=False, isc=True, fid=True, kid=True, prc=True,
        feature_extractor="ours", isc_splits=1, kid_subsets=1, kid_subset_size=150, samples_shuffle=False,
        verbose=False, cache=False,
    )  # fmt: skip
    ours, reference = (collect(TensorImages(part), CifarExtractor()) for part in (images, real))
    assert frechet_figure("FD", ours, reference).estimate.value == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-4
    )
    assert kernel_figure("KD", ours, reference).estimate.value == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-4
    )
    assert score_figure("IS", ours).estimate.value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    precision, recall = precision_recall(ours.kept.pooled, reference.kept.pooled)
    assert precision.value == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall.value == pytest.approx(theirs["recall"], abs=1e-6)


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """Random weights in torch-fidelity's own format; its published ones would have to be downloaded."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    taken = {}
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: taken)
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.undo()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.slow
@needs_fidelity
@pytest.mark.filterwarnings("ignore")
def test_inceptions_features_have_their_places_and_do_not_depend_on_the_batch(inception_weights):
    extractor, images = InceptionExtractor(inception_weights), draw(3, 1, 64)
    features = extractor(images)
    assert features.pooled.shape == (3, 2048)
    assert features.logits.shape == (3, 1008)
    assert features.spatial.shape == (3, 2023)
    alone = [extractor(image[None]) for image in images]
    for name in ("pooled", "logits", "spatial"):
        one_by_one = torch.cat([getattr(part, name) for part in alone])
        torch.testing.assert_close(getattr(features, name), one_by_one, rtol=1e-3, atol=1e-4)
    pooled, logits = extractor.network(images)
    assert torch.equal(pooled, features.pooled)
    assert torch.equal(logits, features.logits)


@pytest.mark.slow
@needs_lpips
@pytest.mark.filterwarnings("ignore")
def test_lpips_takes_its_package_and_is_zero_for_identical_images(monkeypatch):
    import lpips

    torch.manual_seed(0)
    # Its AlexNet would have to be downloaded: here it has random weights.
    monkeypatch.setattr(extras, "import_module", lambda name: Stand(lpips))
    distance = Lpips()
    images = draw(4, 1, 64)
    assert distance(images, images).tolist() == [0.0] * 4
    assert (distance(images, draw(4, 2, 64)) > 0).all()


class Stand:
    def __init__(self, module):
        self.module = module

    def LPIPS(self, **settings):  # noqa: N802
        return self.module.LPIPS(pnet_rand=True, **settings)
