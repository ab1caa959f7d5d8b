"""What a correction costs in memory, summed from live tensors."""

import gc

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import LiveTensors, ddim_pipe, draw, on_evaluation, tiny_unet

import iec

from .tiny_diffusers import prompts, sd_pipe, vae

BATCH, SIZE = 4, 32
LATENT = BATCH * 3 * SIZE * SIZE * 4
PER_SAMPLE = BATCH * 100  # residuals and masks


def peak(pipe, **kwargs):
    gc.collect()
    with LiveTensors() as live:
        draw(pipe, 3, batch=BATCH, **kwargs)
        return live.peak


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("config", [iec.IECConfig(), iec.IECConfig.released()], ids=["K1", "K2"])
def test_a_correction_keeps_at_most_three_latents(config, eta):
    pipe = ddim_pipe(tiny_unet(sample_size=SIZE))
    plain = peak(pipe, eta=eta)
    assert plain > 20 * LATENT  # the network's own activations dominate
    with iec.enabled(pipe, config):
        assert peak(pipe, eta=eta) - plain <= 3 * LATENT + PER_SAMPLE


def left_behind(pipe):
    gc.collect()
    with LiveTensors() as live:
        images = draw(pipe, 3, batch=BATCH)
        gc.collect()
        return live.bytes - images.untyped_storage().nbytes()


def test_nothing_stays_alive_after_a_run_but_the_summary():
    pipe = ddim_pipe(tiny_unet(sample_size=SIZE))
    plain = left_behind(pipe)  # views of the weights
    iec.enable(pipe)
    in_the_summary = 3 * BATCH * (4 + 1)  # per step and sample: a residual, and whether it fell back
    assert left_behind(pipe) <= plain + in_the_summary


def test_an_encoder_before_the_first_step_is_not_recorded():
    """Image to image encodes its picture after the timesteps are set; what its layers computed is not kept."""
    pipe = sd_pipe(DDIMScheduler(), "StableDiffusionImg2ImgPipeline", vae=vae())
    picture = torch.zeros(1, 3, 32, 32)

    def alive_at_the_first_evaluation():
        seen = []
        gc.collect()
        with LiveTensors() as live, on_evaluation(pipe.unet, lambda x: seen.append(live.bytes)):
            pipe(image=picture, num_inference_steps=2, strength=1.0, output_type="latent", **prompts(1))
        return seen[0]

    plain = alive_at_the_first_evaluation()
    with iec.enabled(pipe):
        corrected = alive_at_the_first_evaluation()
    assert corrected - plain < 16 * 4 * 32 * 32 * 4  # latents; the layers of the encoder would be three times that


def test_the_counter_of_live_tensors_counts():
    with LiveTensors() as live:
        a = torch.zeros(1000)
        assert live.bytes == 4000
        b = a + 1
        c = b[:10]
        del a
        assert live.bytes == 4000
        del b
        assert live.bytes == 4000  # a view keeps its storage alive
        del c
        assert live.bytes == 0
        assert live.peak == 8000
