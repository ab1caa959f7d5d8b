import pytest
import torch

from iec.evaluation.features import extract_features
from iec.models.features import FeatureNetwork, load_feature_network, normalize


def draw(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 500])
def test_features_do_not_depend_on_the_batch_size(batch_size):
    network, images = load_feature_network(), draw(11)
    one_by_one = torch.cat([network(normalize(image[None])) for image in images])
    features = extract_features(network, images, batch_size)
    assert features.shape == (11, 128)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, one_by_one, rtol=1e-5, atol=1e-5)
    assert (one_by_one[0] - one_by_one[1]).abs().max() > 1e-2


def test_no_images_have_no_features():
    assert extract_features(load_feature_network(), draw(0)).shape == (0, 128)


@pytest.mark.parametrize(
    ("images", "batch_size", "sentence"),
    [
        (draw(2).float(), 500, "must be uint8, but are float32"),
        (draw(2)[:, :, :16], 500, "must be .N, 3, 32, 32., but are .2, 3, 16, 32."),
        (draw(2)[0], 500, "must be .N, 3, 32, 32."),
        (draw(2), 0, "batch_size must be at least 1"),
    ],
)
def test_images_that_the_network_cannot_take_are_refused(images, batch_size, sentence):
    with pytest.raises(ValueError, match=sentence):
        extract_features(load_feature_network(), images, batch_size)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        extract_features(FeatureNetwork().train(), draw(2))
