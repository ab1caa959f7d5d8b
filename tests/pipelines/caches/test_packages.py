"""What only the DeepCache package and cache-dit need."""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module

import iec

from .techniques import TECHNIQUES, parametrized


def named(*names):
    return parametrized([parameter for parameter in TECHNIQUES if parameter.values[0].name in names])


@named("DeepCache package")
def test_the_helper_is_found_behind_the_hooks_of_offloading(technique):
    results = []
    for offloaded in (False, True):
        pipe = technique.pipe()
        if offloaded:
            add_hook_to_module(pipe.unet.mid_block, ModelHook())
        iec.enable(pipe)
        results.append((technique.draw(pipe), iec.summary(pipe).corrected))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == [0, 3]


@named("DBCache")
def test_cache_dit_may_come_and_go_around_correction(technique):
    """It patches the class of the pipeline, which may be ours."""
    plain = technique.draw(technique.pipe(enabled=False))
    pipe = technique.pipe(enabled=False)
    iec.enable(pipe)
    technique.enable(pipe)
    technique.draw(pipe)
    assert iec.summary(pipe).cached_evaluations > 0
    iec.disable(pipe)
    cached = technique.draw(pipe)
    assert not torch.equal(cached, plain)
    technique.disable(pipe)
    assert torch.equal(technique.draw(pipe), plain)
    iec.enable(pipe)
    technique.draw(pipe)
    assert iec.summary(pipe).cached_evaluations == 0
