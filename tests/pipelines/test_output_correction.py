"""Adams' correction of pipelines' outputs: as an unwrapped pipeline whose scheduler applies the rule itself."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from tiny_models import ddim_pipe, draw, noise, on_evaluation, recorded_inputs, tiny_net, tiny_unet

import iec
from iec.method.adams import adams_relaxation
from iec.runtime import SpacedDDIMScheduler

from . import test_modular, test_offload
from .adams_double import adams_double, evaluations
from .by_hand import assert_same_state
from .loops import LoopPipeline, Net, built
from .schedulers import ETA, FLOW_MATCHING, NOISY, SCHEDULERS, SMALL
from .test_callbacks import sample
from .test_compiled import Backend, compiled
from .test_every_pipeline import CASES, TEXT, ddim, flow_euler, flow_heun, flow_unipc
from .tiny_diffusers import sd_pipe, vae

ADAMS = iec.AdamsConfig(0.6)


def first_order(case):
    """The case with a deterministic first-order scheduler in the place of another."""
    if case.scheduler in (flow_heun, flow_unipc):
        return replace(case, scheduler=flow_euler)
    return case if type(case.scheduler()) in (DDIMScheduler, EulerDiscreteScheduler) else _flow_or_ddim(case)


def _flow_or_ddim(case):
    return case if case.scheduler is flow_euler else replace(case, scheduler=ddim)


@pytest.mark.parametrize("name", CASES)
def test_every_pipeline_is_corrected_as_by_its_scheduler(name):
    case = first_order(CASES[name])
    pipe = case.pipe()
    cls = type(pipe)
    plain, calls = evaluations(pipe, lambda: case.draw(pipe))
    iec.enable(pipe, ADAMS)
    corrected, calls_corrected = evaluations(pipe, lambda: case.draw(pipe))
    summary = iec.summary(pipe)
    iec.enable(pipe, iec.AdamsConfig(0.0))
    assert torch.equal(case.draw(pipe), plain)
    iec.disable(pipe)
    assert type(pipe) is cls
    assert torch.equal(case.draw(pipe), plain)
    assert calls_corrected == calls
    double = case.make(adams_double(case.scheduler()))
    assert_same_state(corrected, case.draw(double))
    assert (corrected - plain).abs().max() > 1e-3
    assert [record.rule for record in summary.steps] == ["none"] + ["adams"] * (len(summary.steps) - 1)
    assert summary.all_warnings == []
    assert summary.num_steps == len(summary.steps)


FIRST_ORDER = {
    "DDIM": SCHEDULERS["DDIM"],
    "DDIM, trailing": lambda: DDIMScheduler(**SMALL, clip_sample=False, timestep_spacing="trailing"),
    "DDIM, v-prediction": SCHEDULERS["DDIM, v-prediction"],
    "DDIM, sample prediction": SCHEDULERS["DDIM, sample prediction"],
    "DDIM, clipping": SCHEDULERS["DDIM, clipping"],
    "DDIM, from no signal at all": lambda: DDIMScheduler(
        **SMALL,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ),
    "Euler": SCHEDULERS["Euler"],
    "Euler, Karras sigmas": SCHEDULERS["Euler, Karras sigmas"],
    "Euler, v-prediction": lambda: EulerDiscreteScheduler(**SMALL, prediction_type="v_prediction"),
    "ours": SCHEDULERS["DDIM, the paper's spacing (ours)"],
}


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_every_first_order_scheduler_is_corrected_as_by_itself(name):
    make = FIRST_ORDER[name]
    pipe = sd_pipe(make())
    plain = sample(pipe)
    iec.enable(pipe, ADAMS)
    corrected = sample(pipe)
    assert_same_state(corrected, sample(sd_pipe(adams_double(make()))))
    assert (corrected - plain).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_default_relaxation_is_that_of_the_number_of_steps(steps):
    pipe = sd_pipe(ddim())
    iec.enable(pipe, iec.AdamsConfig())
    corrected = sample(pipe, steps=steps)
    assert_same_state(corrected, sample(sd_pipe(adams_double(ddim(), adams_relaxation(steps))), steps=steps))


class Converted(Net):
    """A network of noise predictions, of which the scheduler is told another kind; the levels are those of `ddim`."""

    def __init__(self, kind, scheduler):
        super().__init__()
        self.predicts, self.scheduler = kind, scheduler

    def forward(self, x, t):
        eps = super().forward(x, t)
        if self.predicts == "epsilon":
            return eps
        alpha = self.scheduler.alphas_cumprod[int(t)].to(x.dtype)
        clean = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        return clean if self.predicts == "sample" else alpha.sqrt() * eps - (1 - alpha).sqrt() * clean


@pytest.mark.parametrize("make", [DDIMScheduler, SpacedDDIMScheduler])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_what_the_network_predicts_does_not_matter(kind, make):
    """One ODE, corrected in the variable in which it is straight, ends in one state."""
    settings = SMALL if make is SpacedDDIMScheduler else {**SMALL, "clip_sample": False}
    found = []
    for predicts in ("epsilon", kind):
        scheduler = make(**settings, prediction_type=predicts)
        pipe = built(LoopPipeline, Converted(predicts, scheduler), scheduler)
        iec.enable(pipe, ADAMS)
        found.append(pipe(noise(2, 3, 6, 6, dtype=torch.float64), num_inference_steps=6))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("name", sorted(NOISY))
def test_a_stochastic_scheduler_is_refused_before_any_evaluation(name, steps):
    refused(SCHEDULERS[name](), steps, "draws noise|extrapolates", **({"eta": ETA[name]} if name in ETA else {}))


MULTISTEP = {
    **{
        name: SCHEDULERS[name]
        for name in (
            "PNDM (PLMS)",
            "PNDM (PRK)",
            "LMS",
            "Heun",
            "KDPM2",
            "DPM-Solver++ 2M",
            "DPM-Solver++ singlestep",
            "UniPC",
            "DEIS",
            "iPNDM",
        )
    },
    "flow matching Heun": FLOW_MATCHING["flow matching Heun"],
    "flow matching UniPC": flow_unipc,
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_scheduler_is_refused_before_any_evaluation(name):
    refused(MULTISTEP[name](), 5, "extrapolates .* DDIMScheduler")


def refused(scheduler, steps, sentence, **call):
    pipe = sd_pipe(scheduler)
    iec.enable(pipe, ADAMS)
    with recorded_inputs(pipe.unet) as inputs, pytest.raises(iec.IECUnsupportedError, match=sentence) as raised:
        sample(pipe, steps=steps, **call)
    assert inputs == []
    assert "\n" not in str(raised.value)
    assert "step" not in vars(scheduler)
    iec.disable(pipe)


def test_the_same_pipeline_runs_once_its_scheduler_is_another():
    pipe = sd_pipe(SCHEDULERS["UniPC"]())
    iec.enable(pipe, ADAMS)
    with pytest.raises(iec.IECUnsupportedError):
        sample(pipe)
    pipe.scheduler = ddim()
    assert_same_state(sample(pipe), sample(sd_pipe(adams_double(ddim()))))


# Pipelines that IEC refuses


class LTX2Pipeline(LoopPipeline):
    """Two states of one network call, each with a scheduler of its own."""

    @torch.no_grad()
    def __call__(self, latents, num_inference_steps=5):
        self.scheduler.set_timesteps(num_inference_steps)
        sound_scheduler, sound = copy.deepcopy(self.scheduler), 0.5 * latents
        for t in self.scheduler.timesteps:
            picture_output, sound_output = self.unet(torch.cat([latents, sound], 2), t).chunk(2, 2)
            latents = self.scheduler.step(picture_output, t, latents, return_dict=False)[0]
            sound = sound_scheduler.step(sound_output, t, sound, return_dict=False)[0]
        return latents


def test_a_pipeline_of_two_schedulers_has_its_own_one_corrected():
    pipe, x = built(LTX2Pipeline), noise(2, 3, 4, 4)
    with pytest.raises(iec.IECUnsupportedError):
        iec.enable(pipe)
    plain = pipe(x)
    iec.enable(pipe, ADAMS)
    corrected = pipe(x)
    assert (corrected - plain).abs().max() > 1e-4

    picture, sound, last = x, 0.5 * x, None
    scheduler = ddim()
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        first, second = pipe.unet(torch.cat([picture, sound], 2), t).chunk(2, 2)
        h, last = (first if last is None else first + 0.6 * (first - last)), first.clone()
        picture = scheduler.step(h, t, picture).prev_sample
        sound = scheduler.step(second, t, sound).prev_sample
    assert_same_state(corrected, picture)


class CosmosTextToWorldPipeline(LoopPipeline):
    """A step in two calls: the first makes the clean states of both branches, the second is given the guided one."""

    @torch.no_grad()
    def __call__(self, latents, num_inference_steps=5):
        self.scheduler.set_timesteps(num_inference_steps)
        latents = latents * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, t)
            output = torch.cat([self.unet(scaled, t), self.unet(0.8 * scaled, t)])
            clean = self.scheduler.step(output, t, torch.cat([latents, latents]), return_dict=False)[1]
            self.scheduler._step_index -= 1
            conditional, unconditional = clean.chunk(2)
            clean = conditional + 2 * (conditional - unconditional)
            latents = self.scheduler.step(clean, t, latents, return_dict=False, pred_original_sample=clean)[0]
        return latents


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_step_in_two_calls_is_corrected_once(kind):
    def edm():
        return EDMEulerScheduler(sigma_max=8.0, sigma_data=1.0, prediction_type=kind)

    pipe, x = built(CosmosTextToWorldPipeline, scheduler=edm()), noise(2, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(iec.IECUnsupportedError):
        iec.enable(pipe)
    plain = pipe(x)
    iec.enable(pipe, ADAMS)
    corrected = pipe(x)
    assert [record.rule for record in iec.summary(pipe).steps] == ["none", "none"] + ["adams", "none"] * 4
    assert (corrected - plain).abs().max() > 1e-3

    scheduler, state, last = edm(), x, None
    scheduler.set_timesteps(5)
    state = x * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        sigma, following = scheduler.sigmas[i].double(), scheduler.sigmas[i + 1].double()
        total = sigma**2 + 1
        outputs = [pipe.unet(factor * state / total.sqrt(), t) for factor in (1, 0.8)]
        sign = -1 if kind == "v_prediction" else 1
        clean = [state / total + sign * sigma / total.sqrt() * output for output in outputs]
        slopes = [(state - one) / sigma for one in clean]
        corrected_slopes = [
            h if last is None else h + 0.6 * (h - before)
            for h, before in zip(slopes, slopes if last is None else last, strict=True)
        ]
        last = slopes
        first, second = corrected_slopes
        state = state + (following - sigma) * (first + 2 * (first - second))
    assert_same_state(corrected, state, 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_views_of_a_panorama_have_histories_of_their_own():
    def make(scheduler):
        pipe = sd_pipe(scheduler, "StableDiffusionPanoramaPipeline", vae=vae())
        pipe.vae_scale_factor = 8
        return pipe

    def panorama(pipe):
        call = {"height": 64, "width": 640, "num_inference_steps": 3, "output_type": "latent"}
        start = noise(1, 4, 8, 80, seed=3)
        text = {name: value[:1] for name, value in TEXT.items()}
        return pipe(latents=start, **call, **text).images

    pipe = make(ddim())
    plain = panorama(pipe)
    with pytest.raises(iec.IECUnsupportedError):
        iec.enable(pipe)
    iec.enable(pipe, ADAMS)
    corrected = panorama(pipe)
    assert [record.rule for record in iec.summary(pipe).steps] == 3 * ["none"] + 6 * ["adams"]  # three views
    iec.disable(pipe)
    assert torch.equal(panorama(pipe), plain)
    assert_same_state(corrected, panorama(make(adams_double(ddim()))))
    assert (corrected - plain).abs().max() > 1e-3


class StepsACopy(LoopPipeline):
    @torch.no_grad()
    def __call__(self, latents):
        self.scheduler.set_timesteps(4)
        copied = copy.deepcopy(self.scheduler)
        for t in copied.timesteps:
            latents = copied.step(self.unet(latents, t), t, latents).prev_sample
        return latents


def test_a_run_that_steps_a_copy_of_its_scheduler_is_not_passed_off_as_corrected():
    pipe, x = built(StepsACopy), noise(2, 3, 4, 4)
    iec.enable(pipe, ADAMS)
    with pytest.raises(iec.IECUnsupportedError, match="no step of its own scheduler"):
        pipe(x)
    assert "step" not in vars(pipe.scheduler)


# Runs


class Twice(LoopPipeline):
    """Two runs over timesteps of their own in one call."""

    @torch.no_grad()
    def __call__(self, latents, lengths=(5, 3)):
        for length in lengths:
            latents = super().__call__(latents, length) + 0.1
        return latents


@pytest.mark.parametrize("lengths", [(5, 3), (4, 4), (3, 5)])
def test_new_timesteps_within_a_call_begin_a_new_history(lengths):
    pipe, x = built(Twice), noise(2, 3, 4, 4)
    iec.enable(pipe, ADAMS)
    corrected = pipe(x, lengths)
    assert_same_state(corrected, Twice(Net(), adams_double(built(Twice).scheduler))(x, lengths))
    rules = [rule for n in lengths for rule in ["none"] + ["adams"] * (n - 1)]
    assert [record.rule for record in iec.summary(pipe).steps] == rules


@pytest.mark.parametrize("begin", [1, 2, 4])
def test_a_run_that_begins_inside_its_timesteps_has_an_empty_history(begin):
    pipe, x = built(LoopPipeline), noise(2, 3, 4, 4)
    iec.enable(pipe, ADAMS)
    corrected = pipe(x, 5, begin=begin)
    assert_same_state(corrected, LoopPipeline(Net(), adams_double(built(Twice).scheduler))(x, 5, begin=begin))


class SetBefore(LoopPipeline):
    """The timesteps are set before the call."""

    @torch.no_grad()
    def __call__(self, latents):
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.unet(latents, t), t, latents).prev_sample
        return latents


def test_timesteps_that_were_set_before_the_call_are_followed():
    pipe, x = built(SetBefore), noise(2, 3, 4, 4)
    pipe.scheduler.set_timesteps(5)
    iec.enable(pipe, ADAMS)
    expected = LoopPipeline(Net(), adams_double(built(Twice).scheduler))(x, 5)
    for _ in range(2):
        assert_same_state(pipe(x), expected)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 2])
def test_an_exception_leaves_no_trace_and_the_next_run_begins_clean(error, at):
    pipe = sd_pipe(ddim())
    plain = sample(pipe)
    iec.enable(pipe, ADAMS)
    expected = sample(pipe)

    def fail(pipe, i, t, tensors):
        if i == at:
            raise error
        return tensors

    with pytest.raises(error):
        sample(pipe, fail)
    assert "step" not in vars(pipe.scheduler)
    assert "forward" not in vars(pipe.unet)
    assert len(iec.summary(pipe).steps) == at + 1
    assert torch.equal(sample(pipe), expected)
    iec.disable(pipe)
    assert torch.equal(sample(pipe), plain)


def test_an_interrupted_run_leaves_nothing_to_the_next():
    pipe = sd_pipe(ddim())
    iec.enable(pipe, ADAMS)
    expected = sample(pipe)

    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 1
        return tensors

    sample(pipe, stop)
    assert len(iec.summary(pipe).steps) == 2
    assert torch.equal(sample(pipe), expected)


def test_a_callback_that_edits_the_latents_in_place_does_not_edit_the_history():
    def edit(pipe, i, t, tensors):
        tensors["latents"].mul_(0.9)
        return tensors

    pipe = sd_pipe(ddim())
    iec.enable(pipe, ADAMS)
    assert_same_state(sample(pipe, edit), sample(sd_pipe(adams_double(ddim())), edit))


def test_a_network_that_reuses_the_buffer_of_its_output_does_not_spoil_the_history():
    class Reusing(Net):
        def forward(self, x, t):
            output = super().forward(x, t)
            self.buffer = output if getattr(self, "buffer", None) is None else self.buffer.copy_(output)
            return self.buffer

    x = noise(2, 3, 4, 4)
    found = []
    for net in (Net(), Reusing()):
        pipe = built(LoopPipeline, net)
        iec.enable(pipe, ADAMS)
        found.append(pipe(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_state_keeps_its_dtype(dtype):
    pipe, x = built(LoopPipeline), noise(2, 3, 4, 4, dtype=dtype)
    iec.enable(pipe, ADAMS)
    corrected = pipe(x)
    expected = LoopPipeline(Net(), adams_double(built(Twice).scheduler))(x)
    assert_same_state(corrected, expected, 2e-2 if dtype is torch.bfloat16 else 1e-12)


def test_two_threads_with_one_network_do_not_touch_each_other():
    unet = tiny_unet()
    pipes = [ddim_pipe(unet), ddim_pipe(unet, timestep_spacing="trailing")]
    iec.enable(pipes[0], ADAMS)
    iec.enable(pipes[1], iec.AdamsConfig(0.8))
    alone = [draw(pipe, 6, seed=i) for i, pipe in enumerate(pipes)]
    together = [None, None]
    meeting, met = threading.Barrier(2, timeout=60), threading.local()

    def meet(x):
        if not hasattr(met, "already"):
            met.already = True
            meeting.wait()

    def run(i):
        together[i] = draw(pipes[i], 6, seed=i)

    with on_evaluation(unet, meet):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not meeting.broken
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


# Enabling


def test_disable_leaves_no_trace():
    pipe = ddim_pipe()
    cls, state, expected = type(pipe), set(vars(pipe.scheduler)), draw(pipe)
    iec.enable(pipe, ADAMS)
    corrected = draw(pipe)
    assert not torch.equal(corrected, expected)
    iec.disable(pipe)
    assert type(pipe) is cls
    assert set(vars(pipe.scheduler)) == state
    assert torch.equal(draw(pipe), expected)
    with iec.enabled(pipe, ADAMS):
        assert torch.equal(draw(pipe), corrected)
    assert torch.equal(draw(pipe), expected)


def test_one_correction_takes_the_place_of_the_other():
    pipe = ddim_pipe()
    iec.enable(pipe)
    by_iec = draw(pipe)
    with iec.enabled(pipe, ADAMS), recorded_inputs(pipe.unet) as inputs:
        draw(pipe)
        assert len(inputs) == 4
    assert torch.equal(draw(pipe), by_iec)


def test_the_summary_says_which_rule_and_how_large():
    pipe = ddim_pipe(tiny_net())
    with recorded_inputs(pipe.unet) as inputs:
        iec.enable(pipe, ADAMS)
        draw(pipe, 4, batch=3)
    summary = iec.summary(pipe)
    outputs = [pipe.unet(x, t).sample for x, t in zip(inputs, pipe.scheduler.timesteps, strict=True)]
    assert (summary.num_steps, summary.num_images) == (4, 3)
    assert (summary.full_evaluations, summary.cached_evaluations) == (4, 0)
    assert summary.by_rule("adams") == [1, 2, 3]
    assert summary.corrected == summary.selected == []
    assert [record.timestep for record in summary.steps] == pipe.scheduler.timesteps.tolist()
    assert all(record.seconds > 0 for record in summary.steps)
    for i in range(1, 4):
        change = 0.6 * (outputs[i] - outputs[i - 1])
        expected = change.flatten(1).norm(dim=1) / outputs[i].flatten(1).norm(dim=1)
        torch.testing.assert_close(summary.steps[i].change, expected, rtol=1e-4, atol=0)
    assert "outputs of 3 by adams corrected" in str(summary)


@pytest.mark.parametrize("how", ["module.compile()", "torch.compile(module)"])
def test_a_compiled_network_stays_compiled(how):
    torch.compiler.reset()
    expected = ddim_pipe()
    iec.enable(expected, ADAMS)
    pipe, backend = ddim_pipe(), Backend()
    compiled(pipe, how, backend)
    iec.enable(pipe, ADAMS)
    torch.testing.assert_close(draw(pipe, 3), draw(expected, 3))
    assert (backend.graphs, backend.calls) == (1, 3)


@pytest.mark.parametrize("make", [test_offload.stable_diffusion, test_offload.flow_matching])
@pytest.mark.parametrize("name", test_offload.PREPARATIONS)
def test_an_offloaded_pipeline_is_corrected(name, make):
    prepare, reference, pipe = test_offload.PREPARATIONS[name], make(), make()
    if name == "layerwise casting":  # it changes the weights
        prepare(reference)
    plain = test_offload.draw(reference)
    iec.enable(reference, ADAMS)
    expected = test_offload.draw(reference)
    prepare(pipe)
    iec.enable(pipe, ADAMS)
    assert torch.equal(test_offload.draw(pipe), expected)
    iec.disable(pipe)
    assert torch.equal(test_offload.draw(pipe), plain)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize("name", test_modular.GUIDERS)
def test_a_modular_pipeline_is_corrected_as_by_its_scheduler(name):
    pipe = test_modular.modular(test_modular.GUIDERS[name]())
    plain = test_modular.draw(pipe)
    iec.enable(pipe, ADAMS)
    corrected = test_modular.draw(pipe)
    double = test_modular.modular(test_modular.GUIDERS[name](), adams_double(flow_euler()))
    assert_same_state(corrected, test_modular.draw(double))
    assert (corrected - plain).abs().max() > 1e-3
