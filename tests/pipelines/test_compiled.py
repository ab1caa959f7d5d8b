"""Compiled networks stay compiled: the interception stands outside."""

import pytest
import torch
from tiny_models import ddim_pipe, draw, tiny_net

import iec


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


@pytest.mark.parametrize("in_place", [True, False], ids=["module.compile()", "torch.compile(module)"])
def test_every_evaluation_of_a_compiled_network_is_compiled(in_place):
    torch.compiler.reset()
    expected_pipe = ddim_pipe()
    with iec.enabled(expected_pipe):
        expected = draw(expected_pipe, 3)
    net, backend = tiny_net(), Backend()
    pipe = ddim_pipe(net)
    if in_place:
        net.compile(backend=backend, fullgraph=True)
    else:
        pipe.unet = torch.compile(net, backend=backend, fullgraph=True)
    plain = draw(pipe, 3)
    graphs, calls = backend.graphs, backend.calls
    assert calls == 3
    before = set(vars(pipe.unet))
    iec.enable(pipe)
    corrected = draw(pipe, 3)
    torch.testing.assert_close(corrected, expected)
    assert backend.graphs == graphs
    assert backend.calls == calls + 6
    assert set(vars(pipe.unet)) == before
    iec.disable(pipe)
    assert torch.equal(draw(pipe, 3), plain)
