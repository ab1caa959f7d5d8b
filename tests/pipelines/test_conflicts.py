"""Pipelines that do not fit are refused, the known ones before anything is sampled."""

import copy
import re
from pathlib import Path

import diffusers
import pytest
import torch
from tiny_models import noise

import iec
from iec.pipelines.conflicts import CONFLICTS

from .loops import LoopPipeline, Net, built

SOURCES = Path(diffusers.__file__).parent
# They copy the scheduler, or its state, for a purpose of its own in every turn of their loop.
SIGNS = re.compile(r"deepcopy\((self|components)\.scheduler\b|scheduler\._step_index -= 1")


class CosmosTextToWorldPipeline(LoopPipeline):
    pass


class LTX2Pipeline(LoopPipeline):
    pass


class MyOwn(LTX2Pipeline):
    pass


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(CosmosTextToWorldPipeline, "several scheduler steps"), (LTX2Pipeline, "several schedulers"), (MyOwn, "several")],
)
def test_a_pipeline_that_is_known_not_to_fit_is_refused_at_once(cls, reason):
    pipe = built(cls)
    with pytest.raises(iec.IECUnsupportedError, match=reason):
        iec.enable(pipe)
    assert type(pipe) is cls


def test_every_known_conflict_is_a_pipeline_of_diffusers():
    classes = "\n".join(path.read_text() for path in SOURCES.glob("*pipelines/**/*.py"))
    for name in CONFLICTS:
        assert re.search(rf"^class {name}\b", classes, re.MULTILINE)


def test_every_pipeline_of_diffusers_with_the_signs_of_a_conflict_is_known():
    found = []
    for path in sorted(SOURCES.glob("pipelines/**/*.py")):
        text = path.read_text()
        if SIGNS.search(text):
            found += re.findall(r"^class (\w+)\((?:\n\s+)?DiffusionPipeline", text, re.MULTILINE)
    assert len(found) >= 10
    assert set(found) <= set(CONFLICTS)


# What is not known is found out while it runs


class TwoSteps(LoopPipeline):
    @torch.no_grad()
    def __call__(self, latents):
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            output = self.unet(latents, t)
            halfway = self.scheduler.step(output, t, latents).pred_original_sample
            latents = self.scheduler.step(output, t, 0.9 * latents + 0.1 * halfway).prev_sample
        return latents


class StepsACopy(LoopPipeline):
    @torch.no_grad()
    def __call__(self, latents):
        self.scheduler.set_timesteps(4)
        copied = copy.deepcopy(self.scheduler)
        for t in copied.timesteps:
            latents = copied.step(self.unet(latents, t), t, latents).prev_sample
        return latents


def test_two_steps_after_one_evaluation_are_refused():
    net = Net()
    pipe, x = built(TwoSteps, net), noise(2, 3, 4, 4)
    expected = pipe(x)
    iec.enable(pipe)
    with pytest.raises(iec.IECUnsupportedError, match="does not depend on the sample"):
        pipe(x)
    iec.disable(pipe)
    assert torch.equal(pipe(x), expected)


def test_a_run_that_steps_a_copy_of_its_scheduler_is_not_passed_off_as_corrected():
    pipe, x = built(StepsACopy), noise(2, 3, 4, 4)
    expected = pipe(x)
    iec.enable(pipe)
    with pytest.raises(iec.IECUnsupportedError, match="no step of its own scheduler"):
        pipe(x)
    assert "step" not in vars(pipe.scheduler)
    with iec.enabled(pipe, iec.IECConfig(num_iterations=0)):
        assert torch.equal(pipe(x), expected)
    iec.disable(pipe)
    assert torch.equal(pipe(x), expected)
