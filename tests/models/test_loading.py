import json

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from tiny_models import ddim_pipe, tiny_unet

import iec
from iec.models.loading import load_pipeline
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler
from iec.storage.fingerprint import fingerprint


@pytest.fixture
def folder(tmp_path):
    ddim_pipe(tiny_unet()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_keeps_its_own_pipeline_and_scheduler(folder):
    pipe = load_pipeline(folder)
    assert type(pipe) is DDIMPipeline
    assert type(pipe.scheduler) is DDIMScheduler
    assert pipe.unet.dtype == torch.float32
    assert fingerprint(pipe.unet) == fingerprint(tiny_unet())


def test_a_spacing_replaces_the_scheduler_and_keeps_its_betas(folder):
    pipe = load_pipeline(folder, spacing="linspace")
    assert type(pipe.scheduler) is SpacedDDIMScheduler
    assert (pipe.scheduler.config.spacing, pipe.scheduler.config.beta_end) == ("linspace", 2e-3)


def test_the_embedded_model_loads_in_the_asked_dtype_with_the_papers_spacing():
    pipe = load_pipeline(dtype=torch.bfloat16)
    assert type(pipe) is UnconditionalPipeline
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.scheduler.config.spacing == "quad"
    assert torch.allclose(
        pipe.scheduler.alphas_cumprod, torch.linspace(1e-4, 2e-2, 1000).double().neg().add(1).cumprod(0)
    )


def test_the_embedded_folder_is_a_plain_diffusers_pipeline(tmp_path):
    from importlib.resources import files

    source = files("iec.models") / "embedded" / "denoiser"
    pipe = DDIMPipeline.from_pretrained(str(source))
    config = pipe.scheduler.config
    assert (config.clip_sample, config.set_alpha_to_one, config.steps_offset) == (False, True, 0)
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("linear", 1e-4, 2e-2)
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        assert "_name_or_path" not in json.loads((source / name).read_text())


def test_in_float32_the_pipeline_equals_diffusers_own_bit_for_bit():
    unet = tiny_unet()
    theirs, ours = ddim_pipe(unet), UnconditionalPipeline(unet, DDIMScheduler(beta_end=2e-3, clip_sample=False))
    ours.set_progress_bar_config(disable=True)
    for eta in (0.0, 1.0):
        generators = [[iec.image_generator(0, i) for i in range(3)] for _ in range(2)]
        expected = theirs(3, generators[0], eta, 4, output_type="np").images
        assert (ours(generators[1], 4, eta).images == expected).all()


def test_with_a_bfloat16_network_the_state_stays_float32_and_the_noise_the_same():
    unet = tiny_unet().to(torch.bfloat16)
    pipe = UnconditionalPipeline(unet, SpacedDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = torch.from_numpy(pipe([iec.image_generator(0, 5)], 4).images)
    x_t = iec.initial_noise([iec.image_generator(0, 5)], (3, 8, 8))
    x = iec.sample(unet, x_t, num_steps=4, config=None)
    assert torch.equal(images.permute(0, 3, 1, 2), (x / 2 + 0.5).clamp(0, 1))


def test_bad_folders_are_named_in_one_sentence(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path, sentence in [
        (tmp_path / "nowhere", "There is no model folder"),
        (tmp_path / "empty", r"is no diffusers model: it has no model_index\.json"),
        (tmp_path / "file", "is a file"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            load_pipeline(path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"only pickled weights \(diffusion_pytorch_model\.bin\)"):
        load_pipeline(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        load_pipeline(folder)


def test_a_corrupt_weight_file_is_refused_in_one_sentence(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="could not be loaded as a diffusers pipeline"):
        load_pipeline(folder)


def test_a_hub_name_that_cannot_be_reached_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="is no folder here and could not be loaded from the hub"):
        load_pipeline("nobody/no-such-model")


def test_bad_spacing_and_device_are_refused_before_loading():
    with pytest.raises(ValueError, match="Unknown spacing 'cubic'"):
        load_pipeline("nowhere/at-all", spacing="cubic")
    with pytest.raises(ValueError, match="device 'quantum' cannot be used"):
        load_pipeline(device="quantum")


def test_a_fingerprint_tells_weights_apart():
    unet = tiny_unet()
    before = fingerprint(unet)
    assert fingerprint(tiny_unet()) == before
    with torch.no_grad():
        unet.conv_in.bias[0] += 1e-6
    assert fingerprint(unet) != before
