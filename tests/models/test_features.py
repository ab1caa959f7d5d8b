import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iec.models.features import (
    EMBEDDED,
    FeatureNetwork,
    Reference,
    load_feature_network,
    load_reference,
    normalize,
    save_feature_network,
    save_reference,
)


def draw(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_normalization_maps_bytes_onto_minus_one_to_one():
    assert normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_a_saved_network_loads_as_it_was_up_to_float16(tmp_path):
    torch.manual_seed(0)
    network = FeatureNetwork().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-6)  # lost in float16
            module.running_mean.uniform_(-1, 1)
    save_feature_network(network, tmp_path / "network.safetensors")
    loaded = load_feature_network(tmp_path / "network.safetensors")
    assert not loaded.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    saved = load_file(tmp_path / "network.safetensors")
    for name, tensor in network.state_dict().items():
        wide = tensor.dim() <= 1
        torch.testing.assert_close(loaded.state_dict()[name], tensor if wide else tensor.half().float(), rtol=0, atol=0)
        assert wide or saved[name].dtype == torch.float16


def test_features_are_computed_in_float32_inside_of_an_autocast():
    network, images = load_feature_network(), draw(3)
    outside = network.embed(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = network.embed(images)
    assert torch.equal(inside, outside)
    assert outside.dtype == torch.float32
    assert (outside >= 0).all()


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_features_do_not_depend_on_the_batch_size(batch_size):
    network, images = load_feature_network(), draw(11)
    one_by_one = torch.cat([network(normalize(image[None])) for image in images])
    features = torch.cat([network.embed(batch) for batch in images.split(batch_size)])
    assert features.shape == (11, 128)
    torch.testing.assert_close(features, one_by_one, rtol=1e-5, atol=1e-5)
    assert (one_by_one[0] - one_by_one[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (draw(2).float(), "float32 .2, 3, 32, 32."),
        (draw(2)[:, :, :16], "uint8 .2, 3, 16, 32."),
        (draw(2)[0], "uint8 .3, 32, 32."),
    ],
)
def test_images_that_the_network_cannot_take_are_refused(images, found):
    with pytest.raises(ValueError, match=f"must be uint8 .B, 3, 32, 32., but are {found}"):
        load_feature_network().embed(images)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        FeatureNetwork().train().embed(draw(2))


def test_files_that_hold_something_else_are_refused(tmp_path):
    broken, other = tmp_path / "broken.safetensors", tmp_path / "other.safetensors"
    broken.write_bytes(b"not safetensors")
    save_file({"x": torch.zeros(2)}, other)
    for load, what in ((load_feature_network, "feature network"), (load_reference, "reference")):
        with pytest.raises(ValueError, match=f"There is no {what} at"):
            load(tmp_path / "missing.safetensors")
        with pytest.raises(ValueError, match=f"Cannot read the {what}"):
            load(broken)
        with pytest.raises(ValueError, match=f"holds no {what}"):
            load(other)


def test_a_saved_reference_loads_as_it_was_up_to_float16(tmp_path):
    reference = Reference.of(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    save_reference(reference, tmp_path / "reference.safetensors")
    loaded = load_reference(tmp_path / "reference.safetensors")
    assert loaded.n == 20
    assert torch.equal(loaded.features, reference.features.half().float())
    assert torch.equal(loaded.mean, reference.mean)
    assert torch.equal(loaded.covariance, reference.covariance)


def test_a_reference_holds_the_unbiased_moments_of_its_features():
    features = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    reference = Reference.of(features)
    np.testing.assert_allclose(reference.mean.numpy(), features.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(reference.covariance.numpy(), np.cov(features.double().numpy().T, ddof=1), rtol=1e-12)


def test_a_reference_of_one_image_is_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        Reference.of(torch.ones(1, 5))


def test_the_embedded_moments_are_those_of_the_embedded_features():
    reference = load_reference()
    features = reference.features.double().numpy()
    assert features.shape == (10_000, 128)
    np.testing.assert_allclose(reference.mean.numpy(), features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(reference.covariance.numpy(), np.cov(features, rowvar=False), rtol=1e-9, atol=1e-12)


def test_the_embedded_network_tells_the_balanced_classes_of_its_reference_apart():
    """The test set has 1,000 images of each class, so a network and features that belong together must find them."""
    scores = load_feature_network().logits(load_reference().features)
    counts = scores.argmax(1).bincount(minlength=10)
    assert (counts - 1000).abs().max() < 200
    assert scores.softmax(1).amax(1).mean() > 0.6
    shuffled = load_feature_network().logits(load_reference().features.roll(1, dims=1)).argmax(1).bincount(minlength=10)
    assert (shuffled - 1000).abs().max() > 500


def test_the_embedded_files_are_small_enough_to_ship():
    assert (EMBEDDED / "network.safetensors").stat().st_size < 600_000
    assert (EMBEDDED / "reference.safetensors").stat().st_size < 3_000_000
