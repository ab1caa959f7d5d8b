"""PSNR, SSIM, LPIPS and latent errors against the full-precision run."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from tiny_models import ddim_pipe, image_generators, tiny_unet
from torchmetrics.functional.image import structural_similarity_index_measure

import iec
from iec.evaluation.image_sets import TensorImages
from iec.evaluation.metrics.latent import latent_error_estimates, latent_errors, recorded_latents
from iec.evaluation.metrics.lpips import Lpips
from iec.evaluation.metrics.paired import paired_figures
from iec.evaluation.metrics.ssim import ssim


def draw(n, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, size // 4, size // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def disturbed(images, seed=1, strength=20):
    noise = torch.randint(-strength, strength + 1, images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


def scipy_ssim(a, b):
    """SSIM of one channel, after Wang et al. 2004, by scipy's Gaussian filter."""

    def windowed(x):
        return scipy.ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    a, b = a.astype(float), b.astype(float)
    ma, mb = windowed(a), windowed(b)
    va, vb, cov = windowed(a * a) - ma**2, windowed(b * b) - mb**2, windowed(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def test_ssim_agrees_with_scipy_and_torchmetrics():
    a = draw(4, 32)
    b = disturbed(a)
    found = ssim(a, b)
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    expected = [np.mean([scipy_ssim(x, y) for x, y in zip(*pair, strict=True)]) for pair in pairs]
    assert found.numpy() == pytest.approx(expected, rel=1e-9)
    # torchmetrics averages over mirrored borders too; the original does so only where the window fits.
    options = {"data_range": 255.0, "reduction": "none", "return_full_image": True}
    _, places = structural_similarity_index_measure(b.double(), a.double(), **options)
    assert found.numpy() == pytest.approx(places[:, :, 5:-5, 5:-5].mean((1, 2, 3)).numpy(), rel=1e-4)
    assert (found < 0.95).all()
    assert torch.equal(ssim(a, a), torch.ones(4).double())


def test_ssim_of_images_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match="at least 11x11 pixels"):
        ssim(draw(2, 8), draw(2, 8))


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_paired_figures_do_not_depend_on_the_batches(batch_size):
    a = draw(12)
    b = disturbed(a)
    psnr, similarity = paired_figures(TensorImages(b), TensorImages(a), batch_size=batch_size)
    error = (a.double() - b.double()).square().mean()
    assert psnr.estimate.value == pytest.approx(10 * math.log10(255**2 / error))
    assert similarity.estimate.value == pytest.approx(ssim(a, b).mean().item())
    assert psnr.estimate.low < psnr.estimate.value < psnr.estimate.high
    assert (psnr.images, psnr.better, similarity.better) == (12, "higher", "higher")


def test_identical_images_have_no_finite_psnr_and_json_has_none():
    psnr, similarity = paired_figures(TensorImages(draw(12)), TensorImages(draw(12)))
    assert psnr.estimate.value == math.inf
    assert psnr.to_dict()["value"] is None
    assert similarity.estimate.value == 1


def test_lpips_gives_its_network_the_pixels_between_minus_one_and_one():
    a, b = torch.full((12, 3, 4, 4), 255).to(torch.uint8), torch.zeros(12, 3, 4, 4, dtype=torch.uint8)
    b[0] = 255
    lpips = Lpips(lambda x, y: (x - y).abs().mean((1, 2, 3), keepdim=True))
    assert lpips(a, b).tolist() == [0.0] + [2.0] * 11
    (figure,) = paired_figures(TensorImages(a), TensorImages(b), ("lpips",), lpips)
    assert (figure.name, figure.better) == ("LPIPS", "lower")
    assert figure.estimate.value == pytest.approx(22 / 12)


def test_what_are_no_pairs_is_refused():
    with pytest.raises(ValueError, match="holds 12 images, but 'the images' 13"):
        paired_figures(TensorImages(draw(12)), TensorImages(draw(13)))
    with pytest.raises(ValueError, match="24x24 pixels, 3 channels, but 'theirs' of 28x28"):
        paired_figures(TensorImages(draw(12)), TensorImages(draw(12, 28), "theirs"))


def call(pipe, steps=4):
    return pipe(batch_size=3, generator=image_generators(3), num_inference_steps=steps, output_type="pt").images


def states(denoiser, steps=4):
    """The states of a pipeline that nothing of ours runs in."""
    pipe, found = ddim_pipe(denoiser), []
    original = pipe.scheduler.step

    def step(*args, **kwargs):
        output = original(*args, **kwargs)
        found.append(output.prev_sample.clone())
        return output

    pipe.scheduler.step = step
    call(pipe, steps)
    return found


def test_recorded_latents_are_the_states_after_every_step():
    unet = tiny_unet()
    pipe = ddim_pipe(unet)
    with recorded_latents(pipe) as latents:
        first = call(pipe)
        call(pipe)  # starts anew
    expected = states(unet)
    assert len(latents) == 4
    for found, state in zip(latents, expected, strict=True):
        assert torch.equal(found, state)
    assert torch.equal((latents[-1] / 2 + 0.5).clamp(0, 1), first)
    call(pipe)
    assert len(latents) == 4  # no longer recorded


def test_the_latents_of_corrected_steps_are_the_corrected_ones():
    pipe = ddim_pipe(tiny_unet())
    with iec.enabled(pipe, iec.IECConfig(steps="last")), recorded_latents(pipe) as latents:
        image = call(pipe)
    assert len(latents) == 4
    assert torch.equal((latents[-1] / 2 + 0.5).clamp(0, 1), image)
    errors = latent_errors(latents, states(pipe.unet))
    assert (errors[:3] == 0).all()
    assert (errors[3] > 0).all()


def test_latent_errors_are_mean_squared_differences_per_sample():
    a = [torch.zeros(12, 2, 3), torch.ones(12, 2, 3)]
    b = [torch.zeros(12, 2, 3), torch.zeros(12, 2, 3)]
    b[1][0] = 3
    errors = latent_errors(a, b)
    assert errors.tolist() == [[0.0] * 12, [4.0] + [1.0] * 11]
    assert [estimate.value for estimate in latent_error_estimates(errors)] == [0, pytest.approx(15 / 12)]
    with pytest.raises(ValueError, match="as many steps"):
        latent_errors(a, b[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        latent_errors(a, [b[0], torch.zeros(11, 2, 3)])
