"""Offloading and layerwise casting around a corrected pipeline, in either order. Both devices are the CPU here."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_models import noise

import iec

from .tiny_diffusers import flux, latents, piped, prompts, sd_pipe, sd_unet, vae

CONFIG = iec.IECConfig(relaxation=0.5, num_iterations=2, tolerance=0.0)
CPU = torch.device("cpu")


def stable_diffusion():
    unet = copy.deepcopy(sd_unet())
    return sd_pipe(DDIMScheduler(beta_end=2e-3, clip_sample=False), unet=unet, vae=copy.deepcopy(vae()))


def flow_matching():
    transformer = copy.deepcopy(flux(True))
    return piped("FluxPipeline", FlowMatchEulerDiscreteScheduler(), transformer=transformer)


def draw(pipe):
    call = {"num_inference_steps": 3, "output_type": "latent"}
    if hasattr(pipe, "unet"):
        return pipe(latents=latents(), **prompts(), **call).images
    given = {name: value for name, value in prompts(2, "pooled").items() if "negative" not in name}
    return pipe(latents=noise(2, 16, 4), height=64, width=64, **given, **call).images


def network(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def model_cpu_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(kind, **settings):
    def offload(pipe):
        network(pipe).enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **settings)

    return offload


def layerwise_casting(pipe):
    network(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


PREPARATIONS = {
    "model CPU offload": model_cpu_offload,
    "group offload, blocks": group_offload("block_level", num_blocks_per_group=1),
    "group offload, leaves": group_offload("leaf_level"),
    "layerwise casting": layerwise_casting,
}


@pytest.mark.parametrize("first", ["correction first", "preparation first"])
@pytest.mark.parametrize("make", [stable_diffusion, flow_matching])
@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_prepared_pipeline_is_corrected_in_either_order(name, make, first, record_property):
    record_property("preparation", name)
    prepare, reference, pipe = PREPARATIONS[name], make(), make()
    if name == "layerwise casting":  # it changes the weights
        prepare(reference)
    plain = draw(reference)
    with iec.enabled(reference, CONFIG):
        expected = draw(reference)
    for action in (prepare, lambda pipe: iec.enable(pipe, CONFIG))[:: -1 if first == "correction first" else 1]:
        action(pipe)
    assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), expected)  # hooks moved the networks in between
    iec.enable(pipe, iec.IECConfig(relaxation=0.0))
    assert torch.equal(draw(pipe), plain)
    iec.disable(pipe)
    assert torch.equal(draw(pipe), plain)
    assert not torch.equal(plain, expected)
