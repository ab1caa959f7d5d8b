"""Compiled networks stay compiled: the interception stands outside."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import ddim_pipe, draw, noise, tiny_net

import iec

from .tiny_diffusers import flux, piped, prompts


class Backend:
    """Runs the captured graphs as they are, and counts graphs and calls."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def compiled(pipe, how, backend):
    if how == "module.compile()":
        pipe.unet.compile(backend=backend, fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)


@pytest.mark.parametrize("enabled_first", [False, True])
@pytest.mark.parametrize("how", ["module.compile()", "torch.compile(module)"])
def test_every_evaluation_of_a_compiled_network_is_compiled(how, enabled_first, record_property):
    record_property("preparation", how)
    torch.compiler.reset()
    expected_pipe = ddim_pipe()
    expected_plain = draw(expected_pipe, 3)
    with iec.enabled(expected_pipe):
        expected = draw(expected_pipe, 3)
    pipe, backend = ddim_pipe(tiny_net()), Backend()
    if enabled_first:
        iec.enable(pipe)
    compiled(pipe, how, backend)
    before = set(vars(pipe.unet))
    if enabled_first:
        torch.testing.assert_close(draw(pipe, 3), expected)
        assert (backend.graphs, backend.calls) == (1, 6)
        iec.disable(pipe)
    plain = draw(pipe, 3)
    torch.testing.assert_close(plain, expected_plain)
    graphs, calls = backend.graphs, backend.calls
    assert graphs == 1
    iec.enable(pipe)
    corrected = draw(pipe, 3)
    torch.testing.assert_close(corrected, expected)
    assert backend.graphs == graphs
    assert backend.calls == calls + 6
    assert set(vars(pipe.unet)) == before
    iec.disable(pipe)
    assert torch.equal(draw(pipe, 3), plain)


def test_every_block_of_a_regionally_compiled_network_is_compiled(record_property):
    """Each of the two kinds of blocks of a guided pipeline is one graph, which every evaluation runs."""
    record_property("preparation", "compile_repeated_blocks()")
    torch.compiler.reset()
    backend, transformer = Backend(), copy.deepcopy(flux(False))
    pipe = piped("FluxPipeline", FlowMatchEulerDiscreteScheduler(), transformer=transformer)
    call = {"num_inference_steps": 2, "output_type": "latent", "true_cfg_scale": 2.0, "height": 64, "width": 64}

    def sample():
        return pipe(latents=noise(2, 16, 4), **prompts(2, "pooled"), **call).images

    with iec.enabled(pipe):
        expected = sample()
    transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    plain = sample()
    graphs, calls = backend.graphs, backend.calls
    iec.enable(pipe)
    torch.testing.assert_close(sample(), expected)
    assert backend.graphs == graphs
    assert backend.calls == calls + 2 * calls  # one pass per step: twice the evaluations of the plain run
    iec.disable(pipe)
    assert torch.equal(sample(), plain)
