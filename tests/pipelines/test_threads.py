"""Two pipelines that share one network, in two threads at once."""

import threading

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from tiny_models import ddim_pipe, draw, on_evaluation, tiny_unet

import iec


def other_pipe(unet):
    pipe = DDPMPipeline(unet, DDPMScheduler(beta_end=2e-3))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("first", [iec.IECConfig.released(), None], ids=["both corrected", "one plain"])
def test_two_pipelines_with_one_network_do_not_touch_each_other(first):
    unet = tiny_unet()
    pipes = [ddim_pipe(unet), other_pipe(unet)]
    for pipe, config in zip(pipes, [first, iec.IECConfig(relaxation=0.3, steps="edges:1/4")], strict=True):
        if config is not None:
            iec.enable(pipe, config)
    alone = [draw(pipe, 6, seed=i) for i, pipe in enumerate(pipes)]
    together = [None, None]
    # Both wait for each other at their first evaluation, so that the runs do overlap.
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
    assert "forward" not in vars(unet)


def test_a_plain_call_of_the_shared_network_during_a_run_is_plain():
    unet = tiny_unet()
    pipe = ddim_pipe(unet)
    iec.enable(pipe)
    expected = draw(pipe)
    x = torch.zeros(1, 3, 8, 8)
    plain, from_thread = unet(x, 5).sample, []
    busy = threading.local()

    def call_from_a_thread(_):
        if not hasattr(busy, "already"):
            busy.already = True
            thread = threading.Thread(target=inner)
            thread.start()
            thread.join(60)

    def inner():
        busy.already = True
        from_thread.append(unet(x, 5).sample)

    with on_evaluation(unet, call_from_a_thread):
        assert torch.equal(draw(pipe), expected)
    assert len(from_thread) == 1
    assert torch.equal(from_thread[0], plain)
