import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from tiny_models import seeded, tiny_unet

import iec
from iec.efficient import DeepCacheConfig, apply, remove
from iec.models.class_embedder import ClassEmbedder
from iec.models.latent import ClassLatentPipeline, LatentPipeline
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vae():
    return seeded(
        AutoencoderKL(latent_channels=3, block_out_channels=(4,), norm_num_groups=2, scaling_factor=0.5), seed=3
    )


def latent_pipe(scheduler=None):
    return quiet(LatentPipeline(vae(), tiny_unet(), scheduler or SpacedDDIMScheduler(spacing="uniform")))


def class_pipe():
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
    )
    embedder = seeded(ClassEmbedder(5, 6), seed=4)
    return quiet(ClassLatentPipeline(vae(), embedder, seeded(unet), SpacedDDIMScheduler(spacing="uniform")))


def generators(start=0, count=2):
    return [iec.image_generator(0, i) for i in range(start, start + count)]


def test_latents_are_those_of_a_plain_loop_and_images_their_decoding():
    pipe = latent_pipe()
    x_T = iec.initial_noise(generators(), (3, 8, 8))
    x_0 = iec.sample(tiny_unet(), x_T, num_steps=4, spacing="uniform", config=None)
    assert torch.equal(pipe(generators(), 4, output_type="latent").images, x_0)
    with torch.no_grad():
        decoded = vae().decode(x_0 / 0.5).sample
    images = torch.from_numpy(pipe(generators(), 4).images).permute(0, 3, 1, 2)
    assert torch.equal(images, (decoded / 2 + 0.5).clamp(0, 1))
    assert pipe(generators(), 4, output_type="pil").images[0].size == (8, 8)


def test_a_network_in_bfloat16_leaves_the_state_in_float32():
    pipe = latent_pipe().to(torch.bfloat16)
    latents = pipe(generators(), 4, output_type="latent").images
    assert latents.dtype == torch.float32
    x_T = iec.initial_noise(generators(), (3, 8, 8))
    unet = tiny_unet().to(torch.bfloat16)
    assert torch.equal(latents, iec.sample(unet, x_T, num_steps=4, spacing="uniform", config=None))
    assert pipe(generators(), 4).images.dtype == "float32"


def test_a_scheduler_that_scales_the_state_and_the_input_is_followed():
    scheduler = EulerDiscreteScheduler()
    found = quiet(UnconditionalPipeline(tiny_unet(), scheduler))(generators(), 4).images
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    x = iec.initial_noise(generators(), (3, 8, 8)) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = tiny_unet()(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(eps, t, x).prev_sample
    assert (found == (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()).all()


@torch.no_grad()
def test_guidance_combines_the_class_with_no_class():
    pipe = class_pipe()

    def guided(x, t):
        predictions = []
        for labels in ([4, 4], [1, 3]):
            context = pipe.class_embedder.embedding.weight[labels][:, None]
            predictions.append(pipe.unet(x, t, encoder_hidden_states=context).sample)
        return predictions[0] + 1.5 * (predictions[1] - predictions[0])

    x_T = iec.initial_noise(generators(), (3, 8, 8))
    expected = iec.sample(guided, x_T, num_steps=4, spacing="uniform", config=None)
    found = pipe([1, 3], generators(), 4, 1.5, output_type="latent").images
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(found, pipe([1, 3], generators(), 4, 3.0, output_type="latent").images)


def test_one_class_stands_for_all_images_and_an_image_does_not_depend_on_the_others():
    pipe = class_pipe()
    both = pipe(2, generators(), 4, output_type="latent").images
    assert torch.equal(both, pipe([2, 2], generators(), 4, output_type="latent").images)
    second = pipe(2, generators(1, 1), 4, output_type="latent").images
    assert torch.allclose(both[1:], second, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([1], "1 classes were given for 2 images"), ([0, 4], "The classes of this model are 0 to 3, but 4"), (-1, "-1")],
)
def test_bad_classes_are_refused(labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        class_pipe()(labels, generators(), 4)


@torch.no_grad()
def test_a_corrected_guided_run_is_the_corrected_loop():
    pipe, config = class_pipe(), iec.IECConfig()

    def guided(x, t):
        context = pipe.class_embedder(torch.tensor([4, 4, 1, 1]))
        without, of_class = pipe.unet(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=context).sample.chunk(
            2
        )
        return without + 1.5 * (of_class - without)

    x_T = iec.initial_noise(generators(), (3, 8, 8))
    expected = iec.sample(guided, x_T, num_steps=4, spacing="uniform", config=config)
    plain = pipe(1, generators(), 4, output_type="latent").images
    with iec.enabled(pipe, config):
        found = pipe(1, generators(), 4, output_type="latent").images
        assert iec.summary(pipe).corrected == [0, 1, 2, 3]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(plain, pipe(1, generators(), 4, output_type="latent").images)


@pytest.mark.parametrize("pipe", [latent_pipe(), class_pipe()], ids=["unconditional", "conditional"])
def test_deepcache_runs_in_them(pipe):
    inputs = {"class_labels": 0} if isinstance(pipe, ClassLatentPipeline) else {}
    plain = pipe(generator=generators(), num_inference_steps=4, **inputs).images
    apply(pipe, DeepCacheConfig(2, branch=0))
    with iec.enabled(pipe):
        cached = pipe(generator=generators(), num_inference_steps=4, **inputs).images
        summary = iec.summary(pipe)
    assert (summary.full_evaluations, summary.cached_evaluations) == (4, 2)
    assert (cached != plain).any()
    remove(pipe)
    assert (pipe(generator=generators(), num_inference_steps=4, **inputs).images == plain).all()


def test_a_class_is_one_token():
    embedder = ClassEmbedder(5, 6)
    assert torch.equal(embedder(torch.tensor([3, 1])), embedder.embedding.weight[[3, 1]][:, None])
