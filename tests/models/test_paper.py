"""The paper's settings against what is published, and their loading with tiny weights of the same classes."""

import pytest
import torch
from diffusers import PNDMScheduler
from tiny_models import noise, seeded

import iec
from iec.efficient import DeepCacheConfig, apply, remove
from iec.models.paper import load_paper_model, paper_model, paper_models
from iec.runtime import SpacedDDIMScheduler

from .compvis.settings import tiny_paper_model
from .paper_folders import save_paper_model

# Parameters of the UNets as published: spec section 1.7, the tables of the latent-diffusion paper (294 M, 274 M, and
# 400 M with its class embedder), and the size that diffusers prints for Stable Diffusion v1.
PARAMETERS = {
    "cifar10": 35_746_307,
    "churches": 294_966_916,
    "bedrooms": 274_056_163,
    "imagenet": 400_920_579,
    "coco": 859_520_964,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_networks_have_the_published_size(name):
    assert sum(shape.numel() for shape in paper_model(name).unet.shapes().values()) == PARAMETERS[name]


def test_the_settings_are_those_of_the_tables():
    found = {
        name: (model.num_steps, model.eta, model.guidance_scale, model.images, model.intervals, model.branch)
        for name, model in paper_models().items()
    }
    assert found == {
        "cifar10": (100, 0.0, None, 50_000, (3, 5, 10, 15), 3),
        "churches": (100, 0.0, None, 50_000, (3, 5, 10, 15), 0),
        "bedrooms": (100, 0.0, None, 50_000, (2, 3, 5, 10), 0),
        "imagenet": (250, 0.0, 1.5, 50_000, (10, 15, 20), 0),
        "coco": (50, 0.0, 7.5, 5_000, (5, 10), 0),
    }
    assert paper_model("imagenet").inputs == {"num_inference_steps": 250, "guidance_scale": 1.5}


@pytest.mark.parametrize(
    ("name", "first", "last", "timesteps"),
    [
        ("cifar10", 1e-4, 2e-2, (800, 0)),
        ("churches", 0.0015, 0.0155, (991, 1)),
        ("bedrooms", 0.0015, 0.0195, (991, 1)),
        ("imagenet", 0.0015, 0.0195, (997, 1)),
        ("coco", 0.00085, 0.012, (981, 1)),
    ],
)
def test_the_schedulers_have_the_published_betas_and_timesteps(name, first, last, timesteps):
    model = paper_model(name)
    scheduler = model.scheduler.make()
    alphas = scheduler.alphas_cumprod.double()
    found = (1 - alphas[0], 1 - alphas[-1] / alphas[-2])
    assert found == pytest.approx((first, last), rel=1e-4)
    roots = name != "cifar10"
    middle = 1 - alphas[500] / alphas[499]
    between = first + (last - first) * 500 / 999
    if roots:
        between = (first**0.5 + (last**0.5 - first**0.5) * 500 / 999) ** 2
    assert middle == pytest.approx(between, rel=1e-3)
    scheduler.set_timesteps(model.num_steps)
    assert (int(scheduler.timesteps[0]), int(scheduler.timesteps[-1])) == timesteps


def test_an_unknown_model_and_a_missing_folder_are_refused():
    with pytest.raises(ValueError, match="The paper has no model 'celeba': use cifar10, churches"):
        paper_model("celeba")
    with pytest.raises(ValueError, match="exist only as a CompVis checkpoint: rewrite it with iec convert --model"):
        load_paper_model("churches")


def test_a_model_with_a_hub_name_is_loaded_by_it(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("google/ddpm-cifar10-32", "CompVis/stable-diffusion-v1-4"):
        model = next(model for model in paper_models().values() if model.hub == name)
        with pytest.raises(ValueError, match=f"'{name}' is no folder here and could not be loaded"):
            load_paper_model(model)


@pytest.fixture
def cifar(tmp_path):
    """The hub's folder in small: DDPM that clips."""
    model = tiny_paper_model("cifar10")
    save_paper_model(model, tmp_path)
    return model, load_paper_model(model, tmp_path)


@torch.no_grad()
def test_the_cifar_model_is_sampled_by_quadratic_ddim_without_clipping(cifar):
    model, pipe = cifar
    assert type(pipe.scheduler) is SpacedDDIMScheduler
    generators = [iec.image_generator(0, i) for i in range(2)]
    found = torch.from_numpy(pipe(2, generators, 5, output_type="np").images).permute(0, 3, 1, 2)
    x_T = iec.initial_noise([iec.image_generator(0, i) for i in range(2)], (3, 8, 8))
    x_0 = iec.sample(seeded(model.unet.make()), x_T, num_steps=5, spacing="quad", config=None)
    assert torch.allclose(found, (x_0 / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_another_network_is_refused(cifar, tmp_path):
    with pytest.raises(ValueError, match=r"This UNet is not the one of 'cifar10': conv_in\.bias is \[8\] there and"):
        load_paper_model("cifar10", tmp_path)


def test_stable_diffusion_is_sampled_by_plms_without_its_safety_checker(tmp_path):
    model = tiny_paper_model("coco")
    save_paper_model(model, tmp_path)
    pipe = load_paper_model(model, tmp_path)
    assert pipe.safety_checker is None
    assert type(pipe.scheduler) is PNDMScheduler
    call = {**model.inputs, "num_inference_steps": 5, "output_type": "np"}
    with iec.enabled(pipe, iec.IECConfig(steps=model.correct)):
        images = pipe(["a", "b a"], **call, generator=[iec.image_generator(0, i) for i in range(2)]).images
        record = iec.summary(pipe)
    assert iec.IECConfig(steps=model.correct) == iec.IECConfig.stable_diffusion()
    assert record.corrected == [0]
    assert record.full_evaluations == 6 + 1  # PLMS evaluates T + 1 times, and the correction once
    assert images.std() > 0.01


@pytest.mark.parametrize("name", ["cifar10", "churches", "bedrooms", "imagenet", "coco"])
@torch.no_grad()
def test_the_branch_fits_the_network_and_interval_one_changes_nothing(name):
    model = tiny_paper_model(name)
    unet = seeded(model.unet.make())
    context = {} if model.guidance_scale is None else {"encoder_hidden_states": noise(2, 3, 6)}
    size = model.unet.settings["sample_size"]
    x_T = noise(2, model.unet.settings["in_channels"], size, size)

    def sample():
        return iec.sample(lambda x, t: unet(x, t, **context).sample, x_T, num_steps=4, spacing="linspace", config=None)

    plain = sample()
    apply(unet, DeepCacheConfig(1, branch=model.branch))
    assert torch.equal(sample(), plain)
    apply(unet, DeepCacheConfig(2, branch=model.branch))
    assert not torch.allclose(sample(), plain)
    remove(unet)
    assert torch.equal(sample(), plain)
