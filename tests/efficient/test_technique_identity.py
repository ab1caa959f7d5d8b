"""A technique in words: other for another one, the same for the same."""

from dataclasses import replace

import pytest
from tiny_models import ddim_pipe, tiny_unet

from iec.efficient import DeepCacheConfig, QuantizationConfig, apply, calibrate, remove
from iec.efficient.technique_identity import TechniqueIdentity
from iec.pipelines.deployment import model_identity, technique_of


@pytest.fixture(scope="module")
def plan():
    return calibrate(ddim_pipe(tiny_unet()), QuantizationConfig(weights=4), 4, samples=4)


def test_settings_are_named_where_they_are_not_the_default():
    assert TechniqueIdentity.of(DeepCacheConfig(3, branch=0)) == TechniqueIdentity(
        "DeepCacheConfig(interval=3, branch=0)", None
    )
    names = {TechniqueIdentity.of(config).name for config in (DeepCacheConfig(2), DeepCacheConfig(3, branch=0))}
    assert len(names) == 2


def test_a_plan_is_told_by_what_it_found(plan, tmp_path):
    own = TechniqueIdentity.of(plan)
    assert own.model == plan.model
    assert own.name.startswith("QuantizationPlan(")
    plan.save_pretrained(tmp_path / "plan")
    assert TechniqueIdentity.of(type(plan).from_pretrained(tmp_path / "plan")) == own
    other = calibrate(ddim_pipe(tiny_unet()), QuantizationConfig(weights=4), 4, samples=5)
    assert TechniqueIdentity.of(other).name != own.name


def test_how_weights_are_stored_does_not_matter(plan):
    stored = replace(plan, config=replace(plan.config, storage="packed"))
    assert TechniqueIdentity.of(stored) == TechniqueIdentity.of(plan)


def test_a_pipeline_says_what_it_runs_with(plan):
    pipe = ddim_pipe(tiny_unet())
    own = model_identity(pipe)
    assert technique_of(pipe) == "none"
    for technique in (DeepCacheConfig(2), plan):
        apply(pipe, technique)
        assert technique_of(pipe) == TechniqueIdentity.of(technique).name
        remove(pipe)
    apply(pipe, DeepCacheConfig(2))
    assert model_identity(pipe) == own
    remove(pipe)
    apply(pipe, plan)
    assert model_identity(pipe) == plan.model
    remove(pipe)
    assert model_identity(pipe) == own
    assert technique_of(pipe) == "none"
