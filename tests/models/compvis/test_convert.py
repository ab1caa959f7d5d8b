"""From a random CompVis checkpoint to images: the converted pipeline against CompVis networks in our own loop."""

import pytest
import torch
from safetensors.torch import save_file

import iec
from iec.models.compvis import convert_checkpoint
from iec.models.compvis.convert import STAGES
from iec.models.latent import ClassLatentPipeline, LatentPipeline
from iec.models.loading import load_pipeline
from iec.models.paper import load_paper_model, paper_model

from .settings import tiny_checkpoint, tiny_first_stage, tiny_paper_model, tiny_unet


@pytest.fixture
def converted(tmp_path):
    """Convert a random checkpoint and load the folder as a user would."""

    def run(name, tensors=None, **settings):
        save_file(tensors or tiny_checkpoint(name), tmp_path / "weights.safetensors")
        settings = {"weights": "raw", **settings}
        convert_checkpoint(tiny_paper_model(name), tmp_path / "weights.safetensors", tmp_path / "out", **settings)
        return load_pipeline(tmp_path / "out")

    return run


def generators(count=2):
    return [iec.image_generator(0, i) for i in range(count)]


def sampled(model, denoiser, scale, num_steps=5):
    """Images of CompVis networks in our loop over steps, in [0, 1]."""
    settings = model.unet.settings
    x_T = iec.initial_noise(generators(), (settings["in_channels"], settings["sample_size"], settings["sample_size"]))
    alphas = model.scheduler.make().alphas_cumprod
    x_0 = iec.sample(denoiser, x_T, num_steps=num_steps, spacing="uniform", alphas_cumprod=alphas, config=None)
    return (tiny_first_stage(model.name).decode(x_0 / scale) / 2 + 0.5).clamp(0, 1)


def images_of(pipe, num_steps=5, **inputs):
    images = pipe(generator=generators(), num_inference_steps=num_steps, **inputs).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["churches", "bedrooms"])
@torch.no_grad()
def test_an_unconditional_model_gives_the_images_of_its_compvis_networks(converted, name):
    pipe, model = converted(name), tiny_paper_model(name)
    assert type(pipe) is LatentPipeline
    assert pipe.scheduler.config.spacing == "uniform"
    assert pipe.vae.config.scaling_factor == (0.25 if name == "churches" else 1.0)
    expected = sampled(model, tiny_unet(name), pipe.vae.config.scaling_factor)
    assert expected.std() > 0.1
    assert torch.allclose(images_of(pipe), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_class_conditional_model_gives_the_guided_images_of_its_compvis_networks(converted):
    pipe, model, theirs = converted("imagenet"), tiny_paper_model("imagenet"), tiny_unet("imagenet")
    assert type(pipe) is ClassLatentPipeline
    tokens = tiny_checkpoint("imagenet")["cond_stage_model.embedding.weight"]

    def guided(x, t):
        of_class = theirs(x, t, tokens[torch.tensor([2, 0])][:, None])
        without = theirs(x, t, tokens[torch.tensor([4, 4])][:, None])
        return without + 1.5 * (of_class - without)

    found = images_of(pipe, class_labels=[2, 0], guidance_scale=1.5)
    assert torch.allclose(found, sampled(model, guided, 1.0), rtol=0, atol=1e-4)


def test_the_average_is_taken_when_asked_for(converted):
    tensors = tiny_checkpoint("churches", average=True)
    pipe = converted("churches", tensors, weights=None)  # the paper samples the average of this model
    expected = tensors["model.diffusion_model.out.2.bias"] + 0.25
    assert torch.equal(pipe.unet.conv_out.bias, expected)


def test_a_missing_average_is_refused(converted):
    with pytest.raises(ValueError, match=r"holds no running average \(model_ema\.\*\): use --weights raw"):
        converted("churches", weights=None)


def test_an_average_with_another_tensor_is_refused(converted):
    tensors = tiny_checkpoint("churches", average=True) | {"model_ema.diffusion_modelstray": torch.zeros(1)}
    with pytest.raises(ValueError, match="diffusion_modelstray is unexpected"):
        converted("churches", tensors, weights="ema")


def test_a_unet_alone_takes_its_autoencoder_from_another_file(converted, tmp_path):
    unet = tiny_unet("bedrooms").state_dict()
    with pytest.raises(ValueError, match=r"holds no autoencoder \(first_stage_model\.\*\): name its file"):
        converted("bedrooms", unet, weights=None)
    first_stage = tiny_first_stage("bedrooms").state_dict()
    save_file({**first_stage, "loss.discriminator.weight": torch.zeros(1)}, tmp_path / "vq.safetensors")
    pipe = converted("bedrooms", unet, weights=None, autoencoder=tmp_path / "vq.safetensors")
    assert torch.equal(pipe.unet.conv_out.bias, unet["out.2.bias"])
    assert torch.equal(pipe.vae.decoder.conv_out.bias, first_stage["decoder.conv_out.bias"])


@pytest.mark.parametrize(
    ("name", "without", "sentence"),
    [
        ("churches", "scale_factor", "does not say how its latents are scaled"),
        ("imagenet", "cond_stage_model.embedding.weight", "holds no class embedder"),
        ("bedrooms", "first_stage_model.quant_conv.bias", r"quant_conv\.bias is missing"),
    ],
)
def test_what_a_checkpoint_lacks_is_said_and_nothing_is_written(converted, tmp_path, name, without, sentence):
    tensors = tiny_checkpoint(name)
    del tensors[without]
    with pytest.raises(ValueError, match=sentence):
        converted(name, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_another_noise_schedule_is_refused(converted):
    tensors = tiny_checkpoint("bedrooms")
    tensors["betas"] = tensors["betas"] * 1.1
    with pytest.raises(ValueError, match=r"noise schedule \(betas\) is not the one of LDM-4 on LSUN-Bedrooms"):
        converted("bedrooms", tensors)


def test_the_checkpoint_of_another_model_is_refused(converted):
    tensors = {key: tensor for key, tensor in tiny_checkpoint("imagenet").items() if "cond" not in key}
    with pytest.raises(ValueError, match="These are not the weights of the UNet of LDM-4 on LSUN-Bedrooms"):
        converted("bedrooms", tensors)


def test_a_model_with_a_hub_name_an_unknown_choice_and_a_full_folder_are_refused_first(tmp_path):
    with pytest.raises(ValueError, match="needs no conversion: diffusers loads it by its name, google/ddpm"):
        convert_checkpoint(paper_model("cifar10"), tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="Unknown weights 'average'"):
        convert_checkpoint(paper_model("churches"), tmp_path / "none", tmp_path / "out", weights="average")
    (tmp_path / "note").write_text("mine")
    for output in (tmp_path, tmp_path / "note"):
        with pytest.raises(ValueError, match="exists already and is not an empty folder"):
            convert_checkpoint(paper_model("churches"), tmp_path / "none", output)
    assert (tmp_path / "note").read_text() == "mine"


def test_an_interrupted_writing_leaves_nothing(converted, tmp_path, monkeypatch):
    saved = LatentPipeline.save_pretrained

    def interrupted(pipe, folder):
        saved(pipe, folder)
        raise OSError("the disk is full")

    monkeypatch.setattr(LatentPipeline, "save_pretrained", interrupted)
    with pytest.raises(OSError, match="the disk is full"):
        converted("bedrooms")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_every_stage_is_reported(converted):
    stages = []
    converted("bedrooms", on_stage=stages.append)
    assert tuple(stages) == STAGES


def test_the_folder_is_what_load_paper_model_takes(converted, tmp_path):
    converted("churches")
    pipe = load_paper_model(tiny_paper_model("churches"), tmp_path / "out")
    assert pipe.unet.config.num_attention_heads == 4
    with pytest.raises(ValueError, match=r"This UNet is not the one of 'churches': conv_in\.bias is \[8\] there"):
        load_paper_model("churches", tmp_path / "out")
