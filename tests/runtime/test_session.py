"""The session around a pipeline's call: there for the length of the call, on this object alone, gone afterwards."""

import copy
import inspect
import threading

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from tiny_models import ddim_pipe, draw, on_evaluation, recorded_inputs, tiny_net, tiny_unet

import iec
from iec.method.clock import current_clock
from iec.runtime import Part, Participant, Run, SpacedDDIMScheduler, attach, detach, participant, require_pipeline


class Watching(Participant):
    """Notes what the runs of a pipeline tell it."""

    def __init__(self):
        self.events = []

    def join(self, run: Run) -> Part:
        events = self.events

        class Watch(Part):
            def __enter__(self):
                events.append("enter")
                return self

            def __exit__(self, *exception):
                events.append("exit")

            def steps_known(self):
                events.append(("steps", run.clock.num_steps))

            def step(self, commit, args, kwargs):
                events.append(("step", run.clock.step))
                return commit(*args, **kwargs)

        return Watch()


def state_of(pipe):
    """Every attribute of the pipeline and its components, by identity."""
    owners = (pipe, pipe.scheduler, pipe.unet)
    return [{name: id(value) for name, value in vars(owner).items() if name != "timesteps"} for owner in owners]


# What a participant sees


def test_a_participant_is_told_of_the_steps_in_order():
    pipe, watching = ddim_pipe(), Watching()
    attach(pipe, "watch", watching)
    draw(pipe, 3)
    assert watching.events == ["enter", ("steps", 3), ("step", 0), ("step", 1), ("step", 2), "exit"]


def test_participants_nest_and_replace_by_name():
    pipe, first, second, other = ddim_pipe(), Watching(), Watching(), Watching()
    attach(pipe, "a", first)
    attach(pipe, "a", second)
    attach(pipe, "b", other)
    assert participant(pipe, "a") is second
    draw(pipe, 2)
    assert first.events == []
    assert second.events == other.events == ["enter", ("steps", 2), ("step", 0), ("step", 1), "exit"]


def test_the_clock_of_a_run_counts_completed_steps():
    net, seen = tiny_net(), []
    pipe = ddim_pipe(net)
    attach(pipe, "clock", Participant())
    with on_evaluation(net, lambda x: seen.append((current_clock().step, current_clock().num_steps))):
        draw(pipe, 4)
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
    with pytest.raises(RuntimeError, match="outside"):
        current_clock()


def test_the_participants_changes_to_a_step_are_the_pipelines():
    class Halving(Participant):
        def join(self, run):
            class Half(Part):
                def step(self, commit, args, kwargs):
                    stepped = commit(*args, **kwargs)
                    stepped.prev_sample = 0 * stepped.prev_sample
                    return stepped

            return Half()

    pipe = ddim_pipe()
    attach(pipe, "half", Halving())
    assert torch.equal(draw(pipe, 2), torch.full((2, 3, 6, 6), 0.5))


# Attach and detach


def test_the_class_comes_back_with_the_last_participant():
    pipe = ddim_pipe()
    attach(pipe, "a", Participant())
    attach(pipe, "b", Participant())
    assert type(pipe) is not DDIMPipeline
    assert isinstance(pipe, DDIMPipeline)
    detach(pipe, "a")
    assert type(pipe) is not DDIMPipeline
    detach(pipe, "b")
    assert type(pipe) is DDIMPipeline
    detach(pipe, "b")  # nothing to end
    assert participant(pipe, "b") is None


def test_the_hooked_class_looks_like_its_base():
    pipe = ddim_pipe()
    attach(pipe, "a", Participant())
    hooked = type(pipe)
    assert (hooked.__name__, hooked.__qualname__, hooked.__module__) == (
        DDIMPipeline.__name__,
        DDIMPipeline.__qualname__,
        DDIMPipeline.__module__,
    )
    assert inspect.signature(hooked.__call__) == inspect.signature(DDIMPipeline.__call__)
    assert repr(pipe) == repr(ddim_pipe(pipe.unet)) or pipe.config  # both print from the configuration


@pytest.mark.parametrize("make", [dict, tiny_net, DDIMScheduler])
def test_what_is_no_pipeline_is_refused(make):
    for call in (require_pipeline, iec.enable, iec.disable, iec.summary):
        with pytest.raises(TypeError, match=r"diffusers pipeline is needed"):
            call(make())


def test_a_pipeline_without_a_scheduler_or_a_network_is_refused():
    pipe = ddim_pipe()
    pipe.scheduler = None
    with pytest.raises(ValueError, match="no scheduler"):
        iec.enable(pipe)
    pipe = ddim_pipe()
    pipe.unet = None
    with pytest.raises(ValueError, match="no network"):
        iec.enable(pipe)
    assert type(pipe) is DDIMPipeline


# No trace


def test_a_run_leaves_every_attribute_as_it_was():
    pipe = ddim_pipe()
    draw(pipe)
    before = state_of(pipe)
    iec.enable(pipe, iec.IECConfig.released())
    draw(pipe)
    assert state_of(pipe) == before
    assert "step" not in vars(pipe.scheduler)
    assert "forward" not in vars(pipe.unet)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("evaluation", [1, 2, 5])
def test_an_exception_in_the_network_leaves_no_trace(error, evaluation):
    net = tiny_net()
    pipe = ddim_pipe(net)
    expected = draw(pipe)
    before = state_of(pipe)
    iec.enable(pipe)
    calls = []

    def fail(x):
        calls.append(x)
        if len(calls) == evaluation:
            raise error

    with on_evaluation(net, fail), pytest.raises(error):
        draw(pipe)
    assert state_of(pipe) == before
    assert not torch.overrides._get_current_function_mode_stack()
    with pytest.raises(RuntimeError, match="outside"):
        current_clock()
    corrected = draw(pipe)  # still enabled, and not locked
    assert not torch.equal(corrected, expected)
    iec.disable(pipe)
    assert torch.equal(draw(pipe), expected)


def test_an_interrupt_in_the_progress_bar_leaves_no_trace():
    pipe = ddim_pipe()
    draw(pipe)

    def interrupted(timesteps):
        yield timesteps[0]
        raise KeyboardInterrupt

    pipe.progress_bar = interrupted
    before = state_of(pipe)
    iec.enable(pipe)
    with pytest.raises(KeyboardInterrupt):
        draw(pipe)
    assert state_of(pipe) == before
    assert not torch.overrides._get_current_function_mode_stack()


def test_another_pipeline_of_the_class_is_untouched():
    pipe, other = ddim_pipe(), ddim_pipe()
    expected = draw(other)
    iec.enable(pipe)
    assert type(other) is DDIMPipeline
    assert torch.equal(draw(other), expected)
    assert not torch.equal(draw(pipe), expected)


def test_a_pipeline_that_shares_its_components_is_untouched():
    net = tiny_net()
    pipe, other = ddim_pipe(net), ddim_pipe(net)
    other.scheduler = pipe.scheduler
    expected = draw(other)
    iec.enable(pipe)
    corrected = draw(pipe)
    assert torch.equal(draw(other), expected)
    assert not torch.equal(corrected, expected)


def test_a_deep_copy_of_an_enabled_pipeline_is_plain():
    pipe = ddim_pipe()
    expected = draw(pipe)
    iec.enable(pipe)
    corrected = draw(pipe)
    copied = copy.deepcopy(pipe)
    assert copied.unet is not pipe.unet
    assert torch.equal(draw(copied), expected)
    with pytest.raises(RuntimeError, match="not enabled"):
        iec.summary(copied)
    iec.enable(copied)
    assert torch.equal(draw(copied), corrected)
    iec.disable(copied)
    assert torch.equal(draw(copied), expected)
    assert torch.equal(draw(pipe), corrected)


def test_an_enabled_pipeline_saves_and_loads_as_itself(tmp_path):
    pipe = ddim_pipe(tiny_unet())
    expected = draw(pipe)
    iec.enable(pipe)
    corrected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = DDIMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert '"_class_name": "DDIMPipeline"' in (tmp_path / "model_index.json").read_text()
    assert type(loaded) is DDIMPipeline
    torch.testing.assert_close(draw(loaded), expected)  # loaded weights are aligned otherwise
    assert torch.equal(draw(pipe), corrected)


@pytest.mark.parametrize("make", [ddim_pipe, lambda: DDPMPipeline(tiny_net(), DDPMScheduler())])
def test_components_and_configuration_look_the_same(make):
    pipe = make()
    before = dict(pipe.components), dict(pipe.config)
    iec.enable(pipe)
    assert (dict(pipe.components), dict(pipe.config)) == before


def test_a_call_that_another_library_replaced_is_left_in_place():
    pipe = ddim_pipe()
    iec.enable(pipe)
    hooked = type(pipe)
    original = hooked.__call__

    def patched(self, *args, **kwargs):
        return original(self, *args, **kwargs)

    hooked.__call__ = patched
    iec.disable(pipe)
    assert type(pipe).__call__ is patched
    assert torch.equal(draw(pipe), draw(ddim_pipe()))


# Scheduler


def test_a_scheduler_swapped_after_enable_is_honoured():
    pipe, net = ddim_pipe(), tiny_net()
    iec.enable(pipe)
    pipe.scheduler = SpacedDDIMScheduler(beta_end=2e-3)
    with recorded_inputs(pipe.unet) as inputs:
        corrected = draw(pipe)
    expected = ddim_pipe(net, SpacedDDIMScheduler(beta_end=2e-3))
    iec.enable(expected)
    with recorded_inputs(net) as others:
        assert torch.equal(draw(expected), corrected)
    assert len(inputs) == 8
    assert all(torch.equal(a, b) for a, b in zip(inputs, others, strict=True))


def test_a_deep_copy_of_the_scheduler_during_a_run_steps_itself():
    net = tiny_net()
    pipe = ddim_pipe(net, SpacedDDIMScheduler())
    expected = draw(pipe)
    copies = []

    def copy_and_step(x):
        copied = copy.deepcopy(pipe.scheduler)
        copied.step(x, copied.timesteps[copied.step_index or 0], x)
        copies.append(copied)

    iec.enable(pipe, iec.IECConfig(num_iterations=0))
    with on_evaluation(net, copy_and_step):
        assert torch.equal(draw(pipe), expected)
    assert [copied.step_index for copied in copies] == [1, 2, 3, 4]
    assert len(iec.summary(pipe).steps) == 4


# Threads and nesting


def test_a_second_thread_is_refused_while_the_first_goes_on():
    net = tiny_net()
    pipe = ddim_pipe(net)
    iec.enable(pipe)
    expected = draw(pipe)
    inside, go_on, results = threading.Event(), threading.Event(), []

    def wait(x):
        inside.set()
        assert go_on.wait(30)

    with on_evaluation(net, wait):
        first = threading.Thread(target=lambda: results.append(draw(pipe)))
        first.start()
        assert inside.wait(30)
        try:
            with pytest.raises(RuntimeError, match="already being called"):
                draw(pipe)
            for change in (iec.enable, iec.disable):
                with pytest.raises(RuntimeError, match="between its calls"):
                    change(pipe)
        finally:
            go_on.set()
            first.join(30)
    assert torch.equal(results[0], expected)
    assert torch.equal(draw(pipe), expected)


def test_enabling_and_disabling_during_a_call_is_refused():
    net = tiny_net()
    pipe = ddim_pipe(net)
    iec.enable(pipe)
    expected, refused = draw(pipe), []

    def change(x):
        for action in (iec.enable, iec.disable):
            with pytest.raises(RuntimeError, match="between its calls"):
                action(pipe)
            refused.append(action)

    with on_evaluation(net, change):
        assert torch.equal(draw(pipe), expected)
    assert len(refused) == 16


@pytest.mark.parametrize("inner_enabled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_pipeline_called_inside_anothers_run_leaves_it_alone(inner_enabled, shared):
    net = tiny_net()
    outer = ddim_pipe(net)
    inner = ddim_pipe(net if shared else tiny_net(1))
    iec.enable(outer)
    if inner_enabled:
        iec.enable(inner, iec.IECConfig.released())
    expected, inner_expected = draw(outer), draw(inner, 3, seed=7)
    outer_summary = iec.summary(outer).to_dict()
    drawn = []
    progress_bar = outer.progress_bar

    def draw_between_steps(timesteps):
        for t in progress_bar(timesteps):
            drawn.append(draw(inner, 3, seed=7))
            yield t

    outer.progress_bar = draw_between_steps
    assert torch.equal(draw(outer), expected)
    assert len(drawn) == 4
    assert all(torch.equal(images, inner_expected) for images in drawn)
    again = iec.summary(outer).to_dict()
    for name in ("full_evaluations", "corrected", "num_steps"):
        assert again[name] == outer_summary[name]


def test_a_pipeline_called_inside_its_own_run_is_refused():
    net = tiny_net()
    pipe = ddim_pipe(net)
    iec.enable(pipe)
    refused = []

    def call_again(x):
        with pytest.raises(RuntimeError, match="already being called"):
            draw(pipe)
        refused.append(x)

    with on_evaluation(net, call_again):
        draw(pipe)
    assert len(refused) == 8
