"""Calibration samples: each is a row that the network was really given, at its step."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_models import ddim_pipe, noise, tiny_net, tiny_unet

import iec
from iec.efficient.quantization.reconstruction.rows import join, map_rows, take
from iec.efficient.quantization.reconstruction.samples import collect_samples
from iec.efficient.trajectories import Trajectories
from iec.models.unconditional import UnconditionalPipeline

from ..networks import conditional

STEPS, RUNS = 5, 6


def collect(pipe, count, **settings):
    trajectories = Trajectories(pipe, STEPS, RUNS, batch_size=4, **settings.pop("trajectories", {}))
    return collect_samples(pipe.unet, trajectories, STEPS, count, **settings)


def given(pipe):
    """All inputs of all evaluations, as [(step, x row, t)]."""
    seen = []

    def hook(module, args):
        x, t = args[0], torch.as_tensor(args[1])
        seen.append((x.clone(), t.clone()))

    handle = pipe.unet.register_forward_pre_hook(hook)
    Trajectories(pipe, STEPS, RUNS, batch_size=4).run()
    handle.remove()
    return seen


def test_every_sample_is_a_row_that_the_network_was_given():
    pipe = ddim_pipe(tiny_unet())
    evaluations = given(pipe)
    samples = collect(pipe, 12)
    assert len(samples) == 12
    assert samples.inputs["sample"].shape == (12, 3, 8, 8)
    assert samples.inputs["timestep"].shape == (12,)
    found = set()
    for i, step in enumerate(samples.steps.tolist()):
        x = samples.inputs["sample"][i]
        (place,) = [
            (batch, row)
            for batch in (0, 1)
            for row, own in enumerate(evaluations[batch * STEPS + step][0])
            if torch.equal(own, x)
        ]
        assert samples.inputs["timestep"][i] == evaluations[place[0] * STEPS + step][1]
        found.add((step, *place))
    assert len(found) == 12  # none twice
    assert len({step for step, _, _ in found}) > 2


def test_all_of_them_where_more_are_asked_for_and_the_same_every_time():
    pipe = ddim_pipe(tiny_net())
    everything = collect(pipe, 999)
    assert len(everything) == STEPS * RUNS
    assert sorted(everything.steps.tolist()) == sorted([*range(STEPS)] * RUNS)
    some, again = collect(pipe, 9), collect(pipe, 9)
    assert torch.equal(some.steps, again.steps)
    assert torch.equal(some.inputs["sample"], again.inputs["sample"])
    other = collect(pipe, 9, trajectories={"seed": 1})
    assert not torch.equal(some.inputs["sample"], other.inputs["sample"])


def test_full_steps_are_twice_as_likely():
    pipe = ddim_pipe(tiny_net())
    counts = torch.zeros(STEPS)
    for seed in range(60):
        counts += torch.bincount(collect(pipe, 3, trajectories={"seed": seed}, full_steps=(0,)).steps, minlength=STEPS)
    assert counts.sum() == 180
    assert 1.4 < counts[0] / counts[1:].mean() < 2.6  # expected: slightly below 2


def test_rows_are_told_before_each_sampled_evaluation():
    pipe, told = ddim_pipe(tiny_net()), []
    samples = collect(pipe, 7, on_rows=lambda step, rows: told.extend((step, int(row)) for row in rows))
    assert [step for step, _ in told] == samples.steps.tolist()
    assert all(0 <= row < 4 for _, row in told)


def test_correction_passes_are_left_out():
    pipe = ddim_pipe(tiny_net())
    expected = collect(pipe, 999)
    iec.enable(pipe)
    samples = collect(pipe, 999)
    assert len(iec.summary(pipe).corrected) == STEPS
    assert len(samples) == len(expected) == STEPS * RUNS
    first = samples.steps == 0  # before any correction
    assert torch.equal(samples.inputs["sample"][first], expected.inputs["sample"][first])


class Guided(UnconditionalPipeline):
    """A pipeline with classifier-free guidance over a text that is the batch's index."""

    @torch.no_grad()
    def __call__(self, batch_size=1, generator=None, num_inference_steps=5, output_type="pt"):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.stack([torch.randn(4, 8, 8, generator=own) for own in generator])
        text = torch.cat([torch.zeros(len(x), 3, 6), torch.arange(1.0, len(x) + 1).view(-1, 1, 1).expand(-1, 3, 6)])
        for t in self.scheduler.timesteps:
            eps = self.unet(torch.cat([x, x]), t, encoder_hidden_states=text, return_dict=False)[0]
            without, with_text = eps.chunk(2)
            x = self.scheduler.step(without + 2 * (with_text - without), t, x).prev_sample
        return x


def test_of_guidance_one_of_both_rows_is_taken_with_its_own_condition():
    unet = conditional()
    assert isinstance(unet, UNet2DConditionModel)
    pipe = Guided(unet, ddim_pipe().scheduler)
    evaluations = []
    handle = unet.register_forward_pre_hook(lambda module, args: evaluations.append(args[0].clone()))
    samples = collect(pipe, 20)
    handle.remove()
    assert set(samples.inputs) == {"sample", "timestep", "encoder_hidden_states"}
    texts = samples.inputs["encoder_hidden_states"][:, 0, 0]
    assert 4 < (texts == 0).sum() < 16  # both halves
    for x, text, step in zip(samples.inputs["sample"], texts, samples.steps.tolist(), strict=True):
        places = [
            row % (len(evaluations[k]) // 2)
            for k in (step, STEPS + step)
            for row, own in enumerate(evaluations[k])
            if torch.equal(own, x)
        ]
        assert len(places) == 2  # in both halves
        assert text in (0, places[0] + 1)


# Rows


def test_rows_of_nested_arguments():
    value = {"a": noise(4, 2), "b": (noise(8, 3), None, 5), "c": noise(3), "d": torch.tensor(1.0)}
    picked = torch.tensor([2, 0])
    taken = take(value, 4, picked)
    assert torch.equal(taken["a"], value["a"][[2, 0]])
    assert torch.equal(taken["b"][0], value["b"][0][[4, 5, 0, 1]])  # two rows each
    assert taken["b"][1:] == (None, 5)
    assert taken["c"] is value["c"]
    assert taken["d"] is value["d"]
    halves = [map_rows(value, 4, lambda x: x[: len(x) // 2]), map_rows(value, 4, lambda x: x[len(x) // 2 :])]
    joined = join(halves, [2, 2])
    assert torch.equal(joined["a"], value["a"])
    assert torch.equal(joined["b"][0], value["b"][0])
    assert joined["b"][1:] == (None, 5)


@pytest.mark.parametrize("each", [1, 2])
def test_taking_rows_keeps_the_memory_format(each):
    x = noise(4 * each, 3, 5, 5).to(memory_format=torch.channels_last)
    taken = take(x, 4, torch.tensor([1, 3]))
    assert torch.equal(taken, x.view(4, each, 3, 5, 5)[[1, 3]].flatten(0, 1))
    assert each > 1 or taken.is_contiguous(memory_format=torch.channels_last)
