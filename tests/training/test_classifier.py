import pytest
import torch

from iec.models.features import FeatureNetwork, load_reference, save_reference
from iec.training.classifier import (
    ClassifierConfig,
    _augment,
    accuracy,
    build_reference,
    train_classifier,
)
from iec.training.data import ImageSet


def stripes(n: int, seed: int) -> ImageSet:
    """Ten classes of stripes: five widths, lying or standing, in noise, at any place."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=generator)
    noise = torch.randint(0, 60, (n, 3, 32, 32), generator=generator)
    start = torch.randint(0, 32, (n, 1), generator=generator)
    wave = ((torch.arange(32) + start) // (1 + labels[:, None] // 2) % 2 * 150).view(n, 1, 1, 32)
    lying = (labels % 2 == 1).view(n, 1, 1, 1)
    images = torch.where(lying, wave.transpose(2, 3), wave) + noise
    return ImageSet(images.to(torch.uint8), labels)


CONFIG = ClassifierConfig(epochs=4, batch_size=32, learning_rate=0.05)


@pytest.fixture(scope="module")
def trained():
    epochs = []
    network = train_classifier(
        stripes(400, seed=0), CONFIG, lambda network, epoch: epochs.append((network.training, epoch))
    )
    return network, epochs


def test_training_learns_to_tell_unseen_images_apart(trained):
    network, epochs = trained
    assert [epoch.number for _, epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1][1].loss < 0.75 * epochs[0][1].loss
    assert not any(training for training, _ in epochs)
    assert accuracy(network, stripes(200, seed=1)) > 0.8
    assert accuracy(FeatureNetwork().eval(), stripes(200, seed=1)) < 0.4


def test_training_repeats_itself_for_a_seed():
    data, config = stripes(64, seed=0), ClassifierConfig(epochs=1, batch_size=32)
    first, second = train_classifier(data, config), train_classifier(data, config)
    other = train_classifier(data, ClassifierConfig(epochs=1, batch_size=32, seed=1))
    features = [network.embed(data.images) for network in (first, second, other)]
    torch.testing.assert_close(features[0], features[1])
    assert (features[0] - features[2]).abs().max() > 1e-2


def test_accuracy_counts_what_is_right(trained):
    network, _ = trained
    data = stripes(30, seed=2)
    predicted = network.logits(network.embed(data.images)).argmax(1)
    wrong = predicted.clone()
    wrong[:12] = (wrong[:12] + 1) % 10
    assert accuracy(network, ImageSet(data.images, wrong), batch_size=7) == pytest.approx(18 / 30)


def test_a_built_reference_is_saved_without_loss(trained, tmp_path):
    network, _ = trained
    data = stripes(30, seed=2)
    reference = build_reference(network, data, batch_size=7)
    torch.testing.assert_close(reference.features, network.embed(data.images), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(reference.covariance, torch.cov(reference.features.double().T))
    save_reference(reference, tmp_path / "reference.safetensors")
    assert torch.equal(load_reference(tmp_path / "reference.safetensors").features, reference.features)


def test_augmentation_shifts_by_up_to_two_pixels_and_flips():
    image = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    padded = torch.nn.functional.pad(image.float(), [2] * 4, mode="reflect").to(torch.uint8)[0]
    crops = {
        (top, left, flip): padded[:, top : top + 32, left : left + 32].flip(-1)
        if flip
        else padded[:, top : top + 32, left : left + 32]
        for top in range(5)
        for left in range(5)
        for flip in (False, True)
    }
    seen = set()
    for augmented in _augment(image.expand(300, -1, -1, -1), torch.Generator().manual_seed(1)):
        matches = [key for key, crop in crops.items() if torch.equal(crop, augmented)]
        assert len(matches) == 1
        seen.add(matches[0])
    tops, lefts, flips = (set(values) for values in zip(*seen, strict=True))
    assert tops == lefts == set(range(5))
    assert flips == {False, True}


def test_learning_rate_rises_then_falls_to_zero():
    config = ClassifierConfig(learning_rate=0.2, warmup=0.25)
    rates = [config.learning_rate_at(progress) for progress in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.1, 0.0])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"warmup": 1.0}, "warmup is the fraction"),
    ],
)
def test_settings_that_cannot_train_are_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassifierConfig(**setting)


def test_data_that_cannot_train_is_refused():
    data = stripes(8, seed=0)
    with pytest.raises(ValueError, match="needs labelled images"):
        train_classifier(ImageSet(data.images), CONFIG)
    with pytest.raises(ValueError, match="fewer than one batch of 32"):
        train_classifier(data, CONFIG)
    with pytest.raises(ValueError, match="needs images of 3x32x32, not 3x16x32"):
        train_classifier(ImageSet(data.images[:, :, :16], data.labels), ClassifierConfig(batch_size=4))
    with pytest.raises(ValueError, match="needs labelled images"):
        accuracy(FeatureNetwork().eval(), ImageSet(data.images))


def test_a_loss_that_explodes_is_reported():
    with pytest.raises(ValueError, match="non-finite in epoch"):
        train_classifier(stripes(64, seed=0), ClassifierConfig(epochs=2, batch_size=32, learning_rate=1e30))
