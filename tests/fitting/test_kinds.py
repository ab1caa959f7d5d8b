"""Calibrations of other kinds of pipelines: guided, packed, in half precision, with a multistep scheduler."""

import copy

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from pipelines.schedulers import SMALL
from pipelines.tiny_diffusers import flux, piped, prompts, sd_pipe, vae
from tiny_models import ddim_pipe, tiny_unet
from tiny_models import draw as draw_images

import iec
from iec.efficient import QuantizationConfig, apply, calibrate
from iec.pipelines.correction_plan import FitReport, TriedFit

from .models import NoisePipeline, Small, ddim, draw, gaussian_pipe, quad, size
from .test_gaussian import first_state


def test_a_guided_pipeline_of_latents_is_calibrated():
    pipe = sd_pipe(ddim(), vae=vae())
    given = {name: value[:1] for name, value in prompts().items()}
    inputs = {"num_images_per_prompt": 4, "guidance_scale": 3.0, "height": 8, "width": 8, "prompt": None, **given}
    plan = iec.calibrate_correction(pipe, 6, samples=8, batch_size=4, inputs=inputs, substeps=4)
    assert plan.latent == (4, 8, 8)
    assert plan.guidance["guidance_scale"] == 3.0
    assert plan.report.corrected < plan.report.plain / 1.5
    assert plan.fitted.constants is None
    call = {**inputs, "num_inference_steps": 6, "output_type": "latent"}
    iec.enable(pipe, plan)
    for scale, warnings in ((3.0, 0), (4.0, 1)):
        pipe(**{**call, "guidance_scale": scale})
        assert len(iec.summary(pipe).all_warnings) == warnings
    assert iec.summary(pipe).by_rule("plan") == [1, 2, 3, 4, 5]
    offloaded = sd_pipe(ddim(), unet=copy.deepcopy(pipe.unet), vae=copy.deepcopy(pipe.vae))
    offloaded.enable_sequential_cpu_offload(device="cpu")
    iec.enable(offloaded, plan)  # of the same model


@pytest.mark.parametrize("bands", [1, 3])
def test_packed_tokens_are_calibrated_as_images(bands):
    pipe = piped("FluxPipeline", FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=flux(True), vae=vae())
    pipe.vae_scale_factor = 8
    given = {name: value[:1] for name, value in prompts(2, "pooled").items() if "negative" not in name}
    inputs = {"num_images_per_prompt": 4, "height": 64, "width": 128, "prompt": None, **given}
    plan = iec.calibrate_correction(
        pipe, 5, samples=8, batch_size=4, inputs=inputs, substeps=4, history=1, bands=bands, bias=True
    )
    assert plan.latent == (32, 4)
    assert plan.fitted.channel_axis == 2
    assert plan.fitted.grid == ((4, 8) if bands == 3 else None)
    assert plan.fitted.constants.shape == (5, 4)
    assert plan.report.corrected < plan.report.plain
    with iec.enabled(pipe, plan):
        pipe(**inputs, num_inference_steps=5, output_type="latent")
        assert iec.summary(pipe).by_rule("plan") == [0, 1, 2, 3, 4]


def test_half_precision_is_calibrated():
    """The reference's states are kept as exact as they were computed."""
    pipe = NoisePipeline(Small(dtype=torch.bfloat16), quad())
    exact = NoisePipeline(Small(dtype=torch.float32), quad())
    exact.unet.weight.data.copy_(pipe.unet.weight)
    plans = [iec.calibrate_correction(one, 5, samples=16, substeps=4, history=1, bands=1) for one in (pipe, exact)]
    # The last step hardly moves the state, and makes up for all that is left.
    half, single = (plan.fitted.coefficients[:-1] for plan in plans)
    torch.testing.assert_close(half, single, rtol=0, atol=0.1)
    assert plans[0].report.corrected < plans[0].report.plain / 2
    with iec.enabled(pipe, plans[0]):
        assert draw(pipe, steps=5).dtype is torch.bfloat16


def test_a_multistep_solver_is_calibrated_as_it_is():
    pipe = gaussian_pipe(DPMSolverMultistepScheduler(**{**SMALL, "beta_end": 2e-2}))
    plan = iec.calibrate_correction(pipe, 10, samples=16, substeps=12)
    noise, _ = first_state(pipe)
    # The levels of its first state are those of its sigmas.
    sigma = float(pipe.scheduler.sigmas[0])
    expected = pipe.unet.solution(noise, 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5)
    plain = size(draw(pipe, seed=7) - expected)
    with iec.enabled(pipe, plan):
        assert size(draw(pipe, seed=7) - expected) < plain / 2


def test_without_a_full_precision_model_the_solvers_error_is_corrected():
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, calibrate(pipe, QuantizationConfig(weights=4), 5, samples=4))
    before = draw_images(pipe, 5)
    plan = iec.calibrate_correction(pipe, 5, samples=8, reference="self")
    assert torch.equal(draw_images(pipe, 5), before)
    assert plan.report.reference == "self"
    assert plan.report.solver_plain is None
    assert plan.report.solver_share == 1.0
    assert plan.fitted.constants is None  # they would have nothing to correct
    assert plan.report.corrected < plan.report.plain
    assert "QuantizationPlan" in plan.technique


def test_the_candidates_are_those_that_were_asked_for():
    pipe = NoisePipeline(Small(), quad())
    tried = iec.calibrate_correction(pipe, 5, samples=12, substeps=3).report.tried
    assert {(one.history, one.bands, one.bias) for one in tried} >= {(1, 1, False), (2, 1, False)}
    assert not any(one.bias for one in tried)
    plan = iec.calibrate_correction(pipe, 5, samples=12, substeps=3, history=2, bands=3, bias=True)
    assert [(one.history, one.bands, one.bias) for one in plan.report.tried] == [(2, 3, True)]
    assert plan.fitted.coefficients.shape == (5, 2, 3)


def test_the_chosen_candidate_is_the_smallest_of_near_equals():
    pipe = NoisePipeline(Small(), quad())
    plan = iec.calibrate_correction(pipe, 5, samples=16)
    errors = {(one.history, one.bands): one.error for one in plan.report.tried}
    chosen = errors[plan.fitted.history, plan.fitted.num_bands]
    assert plan.report.corrected == chosen
    for size_of, error in errors.items():
        if size_of[0] * size_of[1] < plan.fitted.history * plan.fitted.num_bands:
            assert chosen < 0.98 * error


@pytest.mark.parametrize(
    ("errors", "share"),
    [
        ((0.5, 0.1, None, None), 1.0),
        ((0.5, 0.3, 0.4, 0.0), 1.0),
        ((0.5, 0.3, 0.2, 0.0), 0.25),
        ((0.5, 0.3, 0.0, 0.0), 0.0),
        ((0.3, 0.5, 0.2, 0.0), 0.0),
        ((0.5, 0.3, 0.1, 0.2), 0.0),
    ],
)
def test_the_solvers_share_is_of_the_squared_error(errors, share):
    plain, corrected, solver_plain, solver_corrected = errors
    tried = (TriedFit(1, 1, False, corrected, 0.0),)
    report = FitReport(8, 0, 2, "given", plain, corrected, solver_plain, solver_corrected, tried)
    assert report.solver_share == pytest.approx(share)
    assert f"{plain:.4f} -> {corrected:.4f}" in str(report)
    assert (f"{share:.0%} of the gain" in str(report)) == (solver_plain is not None and corrected < plain)
    assert ("leave it out" in str(report)) == (corrected >= plain)
