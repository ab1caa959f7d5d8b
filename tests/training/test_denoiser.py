import json

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel

from iec.training import denoiser
from iec.training.data import ImageSet
from iec.training.denoiser import TrainingConfig, begin, export, held_out_loss, load_state, save_state, train


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch):
    tiny = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    monkeypatch.setattr(denoiser, "ARCHITECTURE", tiny)


def images(count=24):
    generator = torch.Generator().manual_seed(0)
    return ImageSet(torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8))


def config(**settings):
    return TrainingConfig(**{"iterations": 6, "batch_size": 8, "warmup": 2, "autocast": False, **settings})


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_an_interrupted_training_goes_on_as_if_it_had_never_stopped(tmp_path):
    through = train(begin(config()), images(), config())

    def interrupt(state, loss):
        if state.iteration == 3:
            save_state(state, tmp_path, config())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(begin(config()), images(), config(), interrupt)
    resumed = load_state(tmp_path, config())
    assert resumed.iteration == 3
    train(resumed, images(), config())
    assert resumed.losses == pytest.approx(through.losses, abs=1e-6)
    for name, value in weights(through.model).items():
        assert torch.allclose(weights(resumed.model)[name], value, atol=1e-6)
        assert torch.allclose(weights(resumed.average)[name], weights(through.average)[name], atol=1e-6)


def test_training_lowers_the_loss_and_the_average_follows_the_weights():
    longer = config(iterations=150, learning_rate=2e-3, decay=0.1)
    state = begin(longer)
    start = weights(state.model)
    train(state, images(), longer)
    assert sum(state.losses[-30:]) < 0.8 * sum(state.losses[:30])
    name = "conv_in.weight"
    moved = (weights(state.model)[name] - start[name]).norm()
    behind = (weights(state.model)[name] - weights(state.average)[name]).norm()
    assert 0 < behind < moved


def test_the_average_is_the_recursion_of_its_definition():
    state = begin(config())
    name, decays, expected = "conv_out.bias", [], [weights(state.average)["conv_out.bias"]]

    def follow(state, loss):
        k = state.iteration - 1
        decays.append(min(0.9995, (1 + k) / (10 + k)))
        expected.append(decays[-1] * expected[-1] + (1 - decays[-1]) * weights(state.model)[name])

    train(state, images(), config(), follow)
    assert torch.allclose(weights(state.average)[name], expected[-1], atol=1e-7)


def test_the_rate_warms_up_stays_and_decays():
    rates = [TrainingConfig(iterations=1000, warmup=100, decay=0.3).learning_rate_at(k) for k in (0, 99, 500, 850, 999)]
    assert rates == pytest.approx([4e-6, 4e-4, 4e-4, 2e-4, 4e-4 * max(1 / 300, 0.01)])


def test_the_exported_folder_loads_with_plain_diffusers_and_holds_the_average(tmp_path):
    state = train(begin(config()), images(), config())
    export(state, tmp_path / "model")
    pipe = DDIMPipeline.from_pretrained(tmp_path / "model")
    for name, value in weights(state.average).items():
        assert torch.allclose(weights(pipe.unet)[name].float(), value, atol=2e-3)
    assert "_name_or_path" not in json.loads((tmp_path / "model" / "unet" / "config.json").read_text())
    assert not list((tmp_path / "model").rglob("*.bin"))


def test_a_start_takes_the_weights_of_a_diffusers_folder(tmp_path):
    state = train(begin(config()), images(), config())
    export(state, tmp_path / "model", torch.float32)
    started = begin(config(), tmp_path / "model")
    for name, value in weights(state.average).items():
        assert torch.equal(weights(started.model)[name], value)


def test_resuming_with_other_settings_or_from_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no training state"):
        load_state(tmp_path, config())
    save_state(begin(config()), tmp_path, config())
    with pytest.raises(ValueError, match="has batch_size 8, not 4"):
        load_state(tmp_path, config(batch_size=4))


def test_the_held_out_loss_of_a_model_that_predicts_nothing_is_the_noise_variance():
    model = UNet2DModel(**denoiser.ARCHITECTURE)
    torch.nn.init.zeros_(model.conv_out.weight)
    torch.nn.init.zeros_(model.conv_out.bias)
    found = list(held_out_loss(model, images(), levels=4))
    assert [level for level, _ in found] == [(0, 250), (250, 500), (500, 750), (750, 1000)]
    assert all(loss == pytest.approx(1, abs=0.1) for _, loss in found)


@pytest.mark.parametrize(
    "settings", [{"iterations": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"decay": 2.0}, {"ema_decay": 1.0}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainingConfig(**settings)
