"""Values that stop being numbers: the model's own end the run, those of a correction are dropped and reported."""

import pytest
import torch
from tiny_models import TinyNet, ddim_pipe, draw, recorded_inputs, tiny_net

import iec
from iec.method.clock import current_clock


class Spoiled(TinyNet):
    """Returns `value` for one sample where `where(step, pass_index)` says so."""

    def forward(self, sample, timestep, return_dict=True):
        output = super().forward(sample, timestep)
        clock = current_clock()
        if self.where(clock.step, clock.pass_index):
            output.sample[self.index] = self.value
        return output


def spoiled_pipe(where, index=1, value=float("nan")):
    net = tiny_net()
    net.__class__ = Spoiled
    net.where, net.index, net.value = where, index, value
    return ddim_pipe(net)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("config", [iec.IECConfig(), iec.IECConfig(num_iterations=0), iec.IECConfig(steps=[0])])
def test_a_non_finite_main_output_names_the_step(config, value):
    pipe = spoiled_pipe(lambda step, index: step == 2 and index == 0, value=value)
    iec.enable(pipe, config)
    with pytest.raises(iec.NonFiniteError, match=r"step 2 \(timestep 250\), 1 of 2 samples"):
        draw(pipe, 4)
    assert "forward" not in vars(pipe.unet)
    assert len(iec.summary(pipe).steps) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", [0, 2])
def test_a_non_finite_correction_falls_back_for_that_sample_alone(index, value):
    pipe = spoiled_pipe(lambda step, pass_index: step == 1 and pass_index == 1, index, value)
    iec.enable(pipe)
    images = draw(pipe, 4, batch=3)
    summary = iec.summary(pipe)
    assert [record.samples_fell_back for record in summary.steps] == [[], [index], [], []]
    assert f"At step 1, the correction of sample {index} was not finite" in str(summary)
    plain = ddim_pipe()
    iec.enable(plain)
    everywhere = draw(plain, 4, batch=3)
    iec.enable(plain, iec.IECConfig(steps=[0, 2, 3]))
    without = draw(plain, 4, batch=3)
    others = [i for i in range(3) if i != index]
    assert torch.equal(images[others], everywhere[others])
    assert torch.equal(images[index], without[index])
    assert not torch.equal(without[index], everywhere[index])


def test_a_failure_in_a_later_pass_falls_back_to_the_uncorrected_state():
    pipe = spoiled_pipe(lambda step, pass_index: step == 0 and pass_index == 2)
    iec.enable(pipe, iec.IECConfig.released())
    with recorded_inputs(pipe.unet) as inputs:
        draw(pipe, 2)
    main, first, second, next_step = inputs[:4]
    assert torch.equal(next_step[1], first[1])  # x^(0), where the first pass had started
    assert not torch.equal(next_step[0], first[0])
    assert not torch.equal(second[1], first[1])
    assert not torch.equal(main[1], first[1])
    assert iec.summary(pipe).steps[0].samples_fell_back == [1]


def test_all_samples_may_fall_back():
    pipe = spoiled_pipe(lambda step, pass_index: pass_index > 0, slice(None))
    expected = draw(ddim_pipe())
    iec.enable(pipe)
    assert torch.equal(draw(pipe), expected)
    assert [record.samples_fell_back for record in iec.summary(pipe).steps] == [[0, 1]] * 4
    assert len(iec.summary(pipe).all_warnings) == 4
