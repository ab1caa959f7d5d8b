"""`iec.calibrate_correction`: what was planted is found, what is not there is not, and a plan can be had again."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from pipelines.caches.networks import Flux
from pipelines.caches.techniques import DIFFUSERS
from pipelines.tiny_diffusers import vae
from tiny_models import ddim_pipe, noise, tiny_unet
from tiny_models import draw as draw_images

import iec
from iec.efficient import DeepCacheConfig, QuantizationConfig, applied, apply, calibrate, remove
from iec.method.bands import split_bands
from iec.models.loading import load_pipeline
from iec.runtime import SpacedDDIMScheduler

from .models import Lagging, NoisePipeline, Shifted, Small, ddim, draw, quad, size, trajectories

EVERYTHING = {"history": 2, "bands": 3, "bias": True}


def same(a, b):
    """Whether two plans are equal to the last bit."""
    if not torch.equal(a.fitted.coefficients, b.fitted.coefficients):
        return False
    if (a.fitted.constants is None) != (b.fitted.constants is None):
        return False
    constants = a.fitted.constants is None or torch.equal(a.fitted.constants, b.fitted.constants)
    return constants and replace(a, fitted=None) == replace(b, fitted=None)


def saved(plan, folder):
    plan.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# Nothing to correct


SCHEDULERS = {
    "DDIM": ddim,
    "DDIM, v-prediction": lambda: ddim(prediction_type="v_prediction"),
    "DDIM, linspace": lambda: ddim(timestep_spacing="linspace"),
    "quad": lambda: SpacedDDIMScheduler(),
    "Euler, Karras": lambda: EulerDiscreteScheduler(use_karras_sigmas=True),
    "flow matching": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_reference_of_the_runs_own_steps_gives_exactly_0(name, dtype):
    pipe = NoisePipeline(Small(dtype=dtype), SCHEDULERS[name]())
    plan = iec.calibrate_correction(pipe, 6, samples=8, substeps=1, batch_size=3, **EVERYTHING)
    assert torch.equal(plan.fitted.coefficients, torch.zeros(6, 2, 3, dtype=torch.float64))
    assert torch.equal(plan.fitted.constants, torch.zeros(6, 3, dtype=torch.float64))
    plain = draw(pipe, steps=6)
    with iec.enabled(pipe, plan):
        assert torch.equal(draw(pipe, steps=6), plain)


# What was planted


def gain(pipe, reference, plan):
    """By how much the error of new trajectories falls."""
    expected = draw(reference, seed=3)
    with iec.enabled(pipe, iec.AdamsConfig(0.0)):  # for the clock
        plain = draw(pipe, seed=3)
    with iec.enabled(pipe, plan):
        return size(plain - expected) / size(draw(pipe, seed=3) - expected)


@pytest.mark.parametrize("make", [ddim, quad], ids=["DDIM", "quad"])
def test_a_planted_constant_is_recovered(make):
    pipe, reference = (NoisePipeline(net, make()) for net in (Shifted(), Small()))
    plan = iec.calibrate_correction(pipe, reference=reference, samples=16, substeps=1, history=0, bias=True)
    expected = -Shifted.constants.expand(10, 3)
    torch.testing.assert_close(plan.fitted.constants, expected, rtol=0.05, atol=0)
    assert gain(pipe, reference, plan) > 20
    assert plan.report.reference == "given"
    assert plan.report.solver_share < 0.01


def test_a_planted_lag_is_recovered():
    pipe, reference = (NoisePipeline(net, quad()) for net in (Lagging(), Small()))
    plan = iec.calibrate_correction(
        pipe, reference=reference, samples=16, batch_size=5, substeps=1, history=1, bands=1, bias=False
    )
    expected = torch.full((9, 1, 1), Lagging.share, dtype=torch.float64)
    torch.testing.assert_close(plan.fitted.coefficients[1:], expected, rtol=0.05, atol=0)
    assert plan.fitted.coefficients[0].item() == 0
    assert gain(pipe, reference, plan) > 20


def test_what_was_planted_is_found_out_by_itself():
    """A constant and a lag, with every choice left open."""

    class Both(Lagging):
        def forward(self, x, t):
            return super().forward(x, t) + Shifted.constants.view(3, 1, 1)

    pipe, reference = (NoisePipeline(net, quad()) for net in (Both(), Small()))
    plan = iec.calibrate_correction(pipe, reference=reference, samples=32, substeps=1)
    assert plan.fitted.constants is not None
    assert gain(pipe, reference, plan) > 20


@pytest.mark.slow
def test_a_planted_constant_is_recovered_on_the_embedded_model():
    pipe, reference = load_pipeline(None), load_pipeline(None)
    constants = torch.tensor([0.02, -0.03, 0.05])
    layer = pipe.unet.conv_out
    layer.bias.data = layer.bias.data + constants
    plan = iec.calibrate_correction(pipe, reference=reference, samples=16, substeps=1, history=0, bias=True)
    steps = [i for i, t in enumerate(plan.sampler.timesteps) if t > 0]
    expected = -constants.double().expand(len(steps), 3)
    torch.testing.assert_close(plan.fitted.constants[steps], expected, rtol=0.05, atol=0)
    assert plan.report.corrected < plan.report.plain / 20


# Reproducible


@pytest.fixture(scope="module")
def pair():
    return tuple(NoisePipeline(net, quad()) for net in (Lagging(), Small()))


def test_the_batch_size_does_not_matter(pair):
    pipe, reference = pair
    plans = [
        iec.calibrate_correction(pipe, 5, samples=10, reference=reference, substeps=3, batch_size=count, **EVERYTHING)
        for count in (10, 3, 1)
    ]
    for other in plans[1:]:
        a, b = plans[0].fitted, other.fitted
        torch.testing.assert_close(b.coefficients, a.coefficients, rtol=0, atol=1e-9)
        torch.testing.assert_close(b.constants, a.constants, rtol=0, atol=1e-9)


def test_a_plan_survives_saving_bit_for_bit(pair, tmp_path):
    pipe, reference = pair
    plan = iec.calibrate_correction(
        pipe, 5, samples=8, reference=reference, inputs={"guidance_scale": 1.1}, **EVERYTHING
    )
    plan.save_pretrained(tmp_path / "plan")
    again = iec.CorrectionPlan.from_pretrained(tmp_path / "plan")
    assert same(plan, again)
    assert again.guidance == {"guidance_scale": 1.1}
    assert again.latent == (3, 8, 8)
    assert again.fitted.timesteps == plan.fitted.timesteps
    assert saved(plan, tmp_path / "a") == saved(again, tmp_path / "b")
    with iec.enabled(pipe, plan):
        expected = draw(pipe, steps=5, guidance_scale=1.1)
    with iec.enabled(pipe, tmp_path / "plan"):
        assert torch.equal(draw(pipe, steps=5, guidance_scale=1.1), expected)


def test_a_plan_of_lambdas_survives_saving(pair, tmp_path):
    pipe, reference = pair
    plan = iec.calibrate_correction(pipe, 5, samples=8, reference=reference, relaxation="fitted")
    plan.save_pretrained(tmp_path / "plan")
    assert iec.CorrectionPlan.from_pretrained(tmp_path / "plan") == plan


def told(pair, **settings):
    """The progress of a calibration, and its plan."""
    pipe, reference = pair
    events = []
    plan = iec.calibrate_correction(
        pipe,
        4,
        samples=8,
        reference=reference,
        batch_size=3,
        on_progress=lambda done, total: events.append((done, total)),
        **settings,
    )
    return events, plan


def test_the_progress_grows_to_its_total(pair):
    for settings in ({}, {"relaxation": "fitted"}):
        events, _ = told(pair, **settings)
        assert events == sorted(events)
        assert events[-1][0] == events[-1][1]
        assert all(done <= total for done, total in events)


@pytest.mark.parametrize("after", [1, 2, 3, 9])
def test_an_interrupted_calibration_goes_on_to_the_same_bytes(pair, tmp_path, after):
    _, expected = told(pair)
    pipe, reference = pair
    count, threads = [], threading.active_count()

    def stop(done, total):
        count.append(done)
        if len(count) == after:
            raise KeyboardInterrupt

    folder = tmp_path / "checkpoint"
    settings = {"samples": 8, "reference": reference, "batch_size": 3, "checkpoint": folder}
    with pytest.raises(KeyboardInterrupt):
        iec.calibrate_correction(pipe, 4, **settings, on_progress=stop)
    assert threading.active_count() == threads
    assert type(pipe) is type(reference) is NoisePipeline
    before = reference.unet.calls
    plan = iec.calibrate_correction(pipe, 4, **settings)
    resumed = reference.unet.calls
    told(pair)
    assert resumed - before < reference.unet.calls - resumed
    assert not folder.exists()
    assert saved(plan, tmp_path / "a") == saved(expected, tmp_path / "b")


def test_the_checkpoint_of_another_calibration_is_refused(pair, tmp_path):
    pipe, reference = pair

    def stop(done, total):
        raise KeyboardInterrupt

    settings = {"samples": 8, "reference": reference, "checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(KeyboardInterrupt):
        iec.calibrate_correction(pipe, 4, **settings, on_progress=stop)
    for other in ({"seed": 1}, {"bias": True}, {"inputs": {"guidance_scale": 2.0}}, {"reference": "self"}):
        with pytest.raises(ValueError, match="checkpoint"):
            iec.calibrate_correction(pipe, 4, **{**settings, **other})


# What makes the pipeline efficient is back afterwards


def test_the_reference_runs_without_deepcache_which_is_put_back():
    pipe, technique = ddim_pipe(tiny_unet()), DeepCacheConfig(2, branch=0)
    plain = draw_images(pipe, 4)
    apply(pipe, technique)
    before = draw_images(pipe, 4)
    plan = iec.calibrate_correction(pipe, 4, samples=8, history=1, bands=1)
    assert applied(pipe) == technique
    assert torch.equal(draw_images(pipe, 4), before)
    assert "DeepCacheConfig(interval=2, branch=0)" in plan.technique
    assert plan.report.reference == "full precision"
    assert plan.fitted.full_steps == (True, False, True, False)
    assert plan.report.corrected < plan.report.plain
    with iec.enabled(pipe, plan):
        assert not torch.equal(draw_images(pipe, 4), before)
        assert iec.summary(pipe).by_rule("plan") == [0, 1, 2, 3]
        assert [bool(record.full) for record in iec.summary(pipe).steps] == [True, False, True, False]
    # Another cache would have decided otherwise at the third step.
    other = replace(plan, fitted=replace(plan.fitted, full_steps=(True, False, False, False)))
    with iec.enabled(pipe, other):
        draw_images(pipe, 4)
        summary = iec.summary(pipe)
    assert [record.rule for record in summary.steps] == ["plan", "plan", "adams", "plan"]
    assert "At 1 steps the cache decided otherwise" in str(summary)
    remove(pipe)
    assert torch.equal(draw_images(pipe, 4), plain)


def test_the_reference_runs_without_quantization_which_is_put_back(tmp_path):
    pipe = ddim_pipe(tiny_unet())
    own = calibrate(pipe, QuantizationConfig(weights=4, steps_per_group=2), 4, samples=8)
    reference = iec.calibrate_correction(pipe, 4, samples=8, substeps=2, history=1, bands=1, bias=False)
    apply(pipe, own)
    before = draw_images(pipe, 4)
    plan = iec.calibrate_correction(pipe, 4, samples=8, substeps=2, history=1, bands=1, bias=True)
    assert applied(pipe) == own
    assert torch.equal(draw_images(pipe, 4), before)
    assert plan.technique != reference.technique == "none"
    assert plan.report.solver_plain == pytest.approx(reference.report.plain, rel=1e-6)
    assert plan.report.solver_corrected == pytest.approx(reference.report.corrected, rel=1e-6)
    assert plan.report.corrected < plan.report.plain
    with iec.enabled(pipe, plan):
        assert not torch.equal(draw_images(pipe, 4), before)


def test_an_interruption_puts_the_technique_back():
    pipe, technique = ddim_pipe(tiny_unet()), DeepCacheConfig(2, branch=0)
    apply(pipe, technique)
    before = draw_images(pipe, 4)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        iec.calibrate_correction(pipe, 4, samples=8, on_progress=stop)
    assert applied(pipe) == technique
    assert torch.equal(draw_images(pipe, 4), before)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("technique", [one for one in DIFFUSERS if one.kind is Flux], ids=str)
def test_the_reference_runs_without_a_cache_of_diffusers_which_is_put_back(technique):
    pipe = technique.pipe()
    before, config = technique.draw(pipe), technique.network(pipe)._cache_config
    given = {"prompt_embeds": noise(1, 5, 8, seed=1), "pooled_prompt_embeds": noise(1, 8, seed=2)}
    inputs = {"height": 64, "width": 64, "num_images_per_prompt": 4, "prompt": None, **given}
    pipe.register_modules(vae=vae())  # so that it is asked for latents
    plan = iec.calibrate_correction(pipe, 6, samples=8, batch_size=4, inputs=inputs, history=1, substeps=2)
    assert technique.network(pipe)._cache_config is config
    assert torch.equal(technique.draw(pipe), before)
    assert type(config).__name__ in plan.technique
    assert len(plan.fitted.full_steps) == 6
    with iec.enabled(pipe, plan):
        technique.draw(pipe)
        summary = iec.summary(pipe)
    assert len(summary.by_rule("plan")) + len(summary.by_rule("adams")) >= 5


# IEC's lambda


def test_fitted_lambdas_are_those_of_a_search():
    """Step by step the lambda that brings the states nearest to the reference's, with all earlier ones in place."""
    steps, samples, held_out = 4, 12, 3
    pipe, reference = (NoisePipeline(net, quad()) for net in (Shifted(), Small()))
    plan = iec.calibrate_correction(
        pipe, steps, samples, reference=reference, relaxation="fitted", substeps=1, batch_size=5
    )
    scheduler = quad()
    scheduler.set_timesteps(steps)
    x = torch.stack([torch.randn(3, 8, 8, generator=one) for one in trajectories(samples)]).double()
    target = x

    def step(net, x, x_t, i):
        return scheduler_step(scheduler, i, net(x, scheduler.timesteps[i]), x_t)

    for i in range(steps):
        target = step(reference.unet, target, target, i)
        first = step(pipe.unet, x, x, i)
        moved = step(pipe.unet, first, x, i)
        fit = slice(0, samples - held_out)

        def error(value, first=first, moved=moved, target=target, fit=fit):
            return size((first + value * (moved - first) - target)[fit]) ** 2

        grid = torch.linspace(-2, 3, 5001).tolist()
        best = min(grid, key=error)
        worth = error(0.0) - error(best) > 0.01 * error(0.0)
        assert plan.relaxations[i] == pytest.approx(best if worth else 0.0, abs=2e-3 + 2e-3 * abs(best))
        x = first + plan.relaxations[i] * (moved - first)
    with iec.enabled(pipe, plan):
        found = pipe(samples, trajectories(samples), steps)[0]
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def scheduler_step(scheduler, i, output, x):
    own = copy.deepcopy(scheduler)
    own.set_begin_index(i)
    return own.step(output, own.timesteps[i], x).prev_sample


@pytest.mark.parametrize("chosen", [[], [1], [0, 3], [0, 1, 2, 3]])
def test_a_plan_of_lambdas_evaluates_again_only_at_its_steps(pair, chosen):
    pipe, _ = pair
    _, plan = told(pair, relaxation="fitted")
    plan = replace(plan, relaxations=tuple(0.3 * (step in chosen) for step in range(4)))
    with iec.enabled(pipe, iec.IECConfig(num_iterations=0)):
        plain = draw(pipe, steps=4)
    iec.enable(pipe, plan)
    before = pipe.unet.calls
    corrected, summary = draw(pipe, steps=4), iec.summary(pipe)
    iec.disable(pipe)
    assert pipe.unet.calls - before == 4 + len(chosen)
    assert summary.corrected == chosen
    assert torch.equal(corrected, plain) == (not chosen)


def test_a_plan_of_lambdas_equals_iec_with_that_lambda(pair):
    pipe, _ = pair
    _, plan = told(pair, relaxation="fitted")
    plan = replace(plan, relaxations=(0.4, 0.0, 0.4, 0.0))
    with iec.enabled(pipe, plan):
        found = draw(pipe, steps=4)
    with iec.enabled(pipe, iec.IECConfig(relaxation=0.4, steps=[0, 2], tolerance=0.0)):
        assert torch.equal(draw(pipe, steps=4), found)
    with pytest.raises(ValueError, match="only a pipeline can use"):
        plan.begin(plan.sampler.timesteps)


def test_a_run_that_begins_inside_takes_the_lambdas_of_its_steps(pair):
    pipe = NoisePipeline(Small(), quad())
    _, plan = told((pipe, pair[1]), relaxation="fitted")
    plan = replace(plan, relaxations=(0.9, 0.2, 0.6, 0.0))
    start = draw(pipe, steps=4, begin=4)
    with iec.enabled(pipe, plan):
        before = pipe.unet.calls
        found = draw(pipe, steps=4, begin=2)
        assert iec.summary(pipe).corrected == [0]
    assert pipe.unet.calls - before == 3
    scheduler, x = quad(), start
    scheduler.set_timesteps(4)
    for i, relaxation in ((2, 0.6), (3, 0.0)):
        first = scheduler_step(scheduler, i, pipe.unet(x, scheduler.timesteps[i]), x)
        again = scheduler_step(scheduler, i, pipe.unet(first, scheduler.timesteps[i]), x)
        x = first + relaxation * (again - first)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_lambdas_beside_a_cache_are_fitted_at_its_full_steps():
    pipe = ddim_pipe(tiny_unet())
    apply(pipe, DeepCacheConfig(2, branch=0))
    plan = iec.calibrate_correction(pipe, 4, samples=8, batch_size=3, relaxation="fitted")
    assert plan.relaxations[1] == plan.relaxations[3] == 0
    chosen = [step for step in (0, 2) if plan.relaxations[step]]
    assert chosen
    with iec.enabled(pipe, plan):
        draw_images(pipe, 4)
        summary = iec.summary(pipe)
    assert summary.corrected == chosen
    assert summary.full_evaluations == 2 + len(chosen)


# Runs with a plan


def test_a_correction_that_is_on_while_fitting_has_no_part_in_it(pair):
    _, expected = told(pair)
    pipe = NoisePipeline(Lagging(), quad())
    iec.enable(pipe, iec.AdamsConfig(0.6))
    before = draw(pipe, steps=4)
    _, plan = told((pipe, pair[1]))
    assert same(plan, expected)
    assert torch.equal(draw(pipe, steps=4), before)


def test_the_seed_and_the_number_of_trajectories_matter(pair):
    pipe, reference = pair
    settings = {"reference": reference, "substeps": 2, "history": 1, "bands": 1}
    plans = [
        iec.calibrate_correction(pipe, 4, **settings, **given)
        for given in ({"samples": 8}, {"samples": 8, "seed": 1}, {"samples": 9})
    ]
    assert len({plan.fitted.coefficients.sum().item() for plan in plans}) == 3


def test_a_run_that_begins_inside_takes_the_numbers_of_its_steps(pair):
    pipe, reference = pair
    plan = iec.calibrate_correction(pipe, 5, samples=8, reference=reference, substeps=2, **EVERYTHING)
    start = draw(pipe, steps=5, begin=5)
    iec.enable(pipe, plan)
    found = draw(pipe, steps=5, begin=2)
    assert iec.summary(pipe).by_rule("plan") == [0, 1, 2]
    iec.disable(pipe)
    scheduler, outputs, x, last = quad(), [], start, None
    scheduler.set_timesteps(5)
    for i in (2, 3, 4):
        h = Small().forward(x, scheduler.timesteps[i])
        last = h if last is None else (h + Lagging.share * last) / (1 + Lagging.share)
        outputs.append(last)
        corrected = last + plan.fitted.constants[i].view(3, 1, 1)
        for j in range(min(2, len(outputs) - 1)):
            bands = split_bands(outputs[-1 - j] - outputs[-2 - j])
            corrected = corrected + sum(plan.fitted.coefficients[i, j, band] * bands[band] for band in range(3))
        x = scheduler_step(scheduler, i, corrected, x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_another_guidance_scale_is_a_warning(pair):
    pipe, reference = pair
    plan = iec.calibrate_correction(
        pipe, 4, samples=8, reference=reference, substeps=1, inputs={"guidance_scale": 1.5}, history=1
    )
    with iec.enabled(pipe, plan):
        for scale, count in ((1.5, 0), (2.0, 1), (None, 1)):
            draw(pipe, steps=4, **({} if scale is None else {"guidance_scale": scale}))
            warnings = iec.summary(pipe).all_warnings
            assert len(warnings) == count
            assert all("guidance_scale 1.5, but this call has" in line for line in warnings)


def test_the_pipeline_is_left_alone():
    pair = tuple(NoisePipeline(net, quad()) for net in (Shifted(), Small()))
    before = [draw(one) for one in pair]
    settings = [set(vars(one.scheduler)) for one in pair]
    told(pair)
    for one, expected, kept in zip(pair, before, settings, strict=True):
        assert type(one) is NoisePipeline
        assert set(vars(one.scheduler)) == kept
        assert torch.equal(draw(one), expected)
