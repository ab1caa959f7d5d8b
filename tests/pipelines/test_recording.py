"""Recording what happens around a network and replaying it at another value."""

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import noise

from iec.pipelines import IECUnsupportedError
from iec.pipelines.guided_output import GuidedOutput
from iec.pipelines.recording import Evaluation, Operation, Recorder, tensors_in
from iec.pipelines.replaying import depends, replay

from .loops import Net


def recorded(glue, x, net):
    """The events of `glue(call, x)` and its output; `call` is the network as the session would intercept it."""
    recorder = Recorder()
    recorder.start()
    output = glue(lambda *args, **kwargs: recorder.evaluate(net, args, kwargs), x)
    return recorder.stop(), output


def evaluated_again(event, args, kwargs):
    return event.call(*args, **kwargs)


def as_recorded(event, args, kwargs):
    return event.output


def plain(call, x):
    return call(x, 3)


def scaled(call, x):
    return 0.5 * call(2 * x + 1, 3) - 0.1 * x


def guided(call, x):
    unconditional, conditional = call(torch.cat([x, x]), 3, context=CONTEXT).chunk(2)
    return unconditional + 3 * (conditional - unconditional)


def guided_in_two_calls(call, x):
    unconditional, conditional = call(x, 3), call(x, 3, context=CONTEXT[2:])
    return torch.lerp(unconditional, conditional, 3.0)


def rescaled(call, x):
    output = guided(call, x)
    return output / output.std(dim=(1, 2, 3), keepdim=True)


def packed(call, x):
    tokens = x.reshape(2, 3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 12)
    grid = tokens.reshape(2, 2, 2, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 4, 4)
    return call(grid, 3).flip(-1)


def concatenated(call, x):
    return call(torch.cat([x, CONDITION], 1), 3)[:, :3]


def cast(call, x):
    return call(x.double(), 3).float()


def in_place(call, x):
    y = x.clone()
    y *= 2
    y[:, :1] = 0.25
    y.add_(0.1)
    output = call(y, 3) * 1.0
    output -= 0.5
    output[:, 1:2] *= 3
    return output


def buffered(call, x):
    buffer = torch.zeros(4, 3, 4, 4)
    buffer[:2] = x
    buffer[2:] = -x
    return call(buffer, 3)[2:]


def masked(call, x):
    return torch.where(x > 0, call(x, 3), -call(x.abs(), 3))


def unused(call, x):
    call(x, 9)
    torch.randn(3)
    return call(x + torch.ones(2, 3, 4, 4).mean(), 3)


CONTEXT = torch.tensor([0.0, 0.0, 1.0, -1.0])
CONDITION = noise(2, 1, 4, 4, seed=9)
GLUES = [plain, scaled, guided, guided_in_two_calls, rescaled, packed, concatenated, cast, buffered, masked, unused]
KINDS = {
    "tensor": lambda output: output,
    "tuple": lambda output: (output, output.mean()),
    "dict": lambda output: {"other": output.sum(), "sample": output},
    "ModelOutput": lambda output: UNet2DOutput(sample=output),
}


@pytest.mark.parametrize("glue", [*GLUES, in_place])
def test_a_replay_at_another_value_is_what_the_glue_computes_there(glue):
    net, x, other = Net(4 if glue is concatenated else 3), noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    events, target = recorded(glue, x, net)
    assert torch.equal(target, glue(net, x))
    replayed = replay(events, x, other, target, evaluated_again)
    assert torch.equal(replayed, glue(net, other))
    assert not torch.equal(replayed, target)


@pytest.mark.parametrize("glue", [*GLUES, in_place])
def test_a_replay_leaves_the_recording_as_it_was(glue):
    net, x, other = Net(4 if glue is concatenated else 3), noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    events, target = recorded(glue, x, net)
    before = [tensor.clone() for event in events for tensor in tensors_in((event.args, event.kwargs, event.output))]
    first = replay(events, x, other, target, evaluated_again)
    after = [tensor for event in events for tensor in tensors_in((event.args, event.kwargs, event.output))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(replay(events, x, other, target, evaluated_again), first)


@pytest.mark.parametrize("glue", [*GLUES, in_place])
def test_a_replay_with_the_recorded_outputs_reproduces_the_target_without_an_evaluation(glue):
    net, x = Net(4 if glue is concatenated else 3), noise(2, 3, 4, 4)
    events, target = recorded(glue, x, net)
    assert torch.equal(replay(events, x, x, target, as_recorded), target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_may_return_its_output_in_any_wrapping(kind):
    def glue(call, x):
        output = call(2 * x, 3)
        return output if kind == "tensor" else output[0] if kind == "tuple" else output["sample"]

    net, x, other = Net(kind=KINDS[kind]), noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    events, target = recorded(glue, x, net)
    assert torch.equal(replay(events, x, other, target, evaluated_again), glue(net, other))


@settings(max_examples=50)
@given(st.data())
def test_any_chain_of_operations_replays(data):
    """Random programs of pointwise, in-place, shape and network calls."""
    operations = {
        "double": lambda call, y: y * 2,
        "add in place": lambda call, y: y.clone().add_(0.5),
        "set": lambda call, y: write_row(y.clone()),
        "flip": lambda call, y: y.flip(1),
        "transpose": lambda call, y: y.transpose(2, 3),
        "halves": lambda call, y: torch.cat(y.chunk(2, dim=2)[::-1], dim=2),
        "network": lambda call, y: call(y, 3),
        "round trip": lambda call, y: y.double().reshape(2, -1).reshape(y.shape).to(y.dtype),
        "stack": lambda call, y: torch.stack([y, -y]).mean(0) + y,
    }
    names = data.draw(st.lists(st.sampled_from(sorted(operations)), max_size=8))

    def glue(call, x):
        for name in [*names[: len(names) // 2], "network", *names[len(names) // 2 :]]:
            x = operations[name](call, x)
        return x

    net, x, other = Net(), noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    events, target = recorded(glue, x, net)
    assert torch.equal(replay(events, x, other, target, evaluated_again), glue(net, other))
    assert torch.equal(GuidedOutput(events, x, target)(other), glue(net, other))


def write_row(y):
    y[:, 1:] = y[:, :-1].clone()
    return y


# The recorder


def test_nothing_inside_a_network_is_recorded():
    events, _ = recorded(scaled, noise(2, 3, 4, 4), Net())
    assert [type(event) for event in events].count(Evaluation) == 1
    assert {event.function.__name__ for event in events if isinstance(event, Operation)} <= {"mul", "add", "sub"} | {
        "__mul__",
        "__rmul__",
        "__add__",
        "__sub__",
    }


def test_a_component_inside_a_component_is_part_of_its_event():
    recorder, inner = Recorder(), Net()

    def outer(x):
        return recorder.evaluate(inner, (x, 3), {}) + 1

    x = noise(2, 3, 4, 4)
    recorder.start()
    recorder.evaluate(outer, (x,), {})
    assert recorder.recording
    (event,) = recorder.stop()
    assert event.call is outer
    assert not recorder.recording


def test_outside_a_recording_a_network_is_called_plainly():
    recorder, x = Recorder(), noise(2, 3, 4, 4)
    assert torch.equal(recorder.evaluate(Net(), (x, 3), {}), Net()(x, 3))
    assert recorder.stop() == []


def test_an_exception_in_a_network_leaves_the_recorder_usable():
    recorder, net, x = Recorder(), Net(), noise(2, 3, 4, 4)

    def broken(x):
        raise ZeroDivisionError

    recorder.start()
    with pytest.raises(ZeroDivisionError):
        recorder.evaluate(broken, (x,), {})
    assert recorder.recording
    recorder.evaluate(net, (x, 3), {})
    assert len(recorder.stop()) == 1
    assert not torch.overrides._get_current_function_mode_stack()


def test_starting_again_begins_afresh():
    recorder, x = Recorder(), noise(2, 3, 4, 4)
    recorder.start()
    x + 1
    recorder.start()
    x + 2
    (event,) = recorder.stop()
    assert event.args[1] == 2
    assert not torch.overrides._get_current_function_mode_stack()


# What depends on what


def test_dependence_needs_an_evaluation():
    net, x = Net(), noise(2, 3, 4, 4)
    events, target = recorded(scaled, x, net)
    assert depends(events, x, target)
    assert not depends(events, noise(2, 3, 4, 4), target)
    events, around = recorded(lambda call, x: (call(torch.zeros_like(x), 3), 2 * x)[1], x, net)
    assert not depends(events, x, around)


def test_dependence_through_an_in_place_write():
    events, target = recorded(buffered, noise(2, 3, 4, 4), Net())
    x = next(iter(tensors_in(events[1].args[2])))
    assert depends(events, x, target)


# What cannot be replayed is refused


def with_fresh_noise(call, x):
    return call(x, 3) + torch.randn_like(x)


def with_dropout(call, x):
    return call(torch.nn.functional.dropout(x, 0.5, training=True), 3)


@pytest.mark.parametrize("glue", [with_fresh_noise, with_dropout])
def test_random_glue_is_refused(glue):
    x = noise(2, 3, 4, 4)
    events, target = recorded(glue, x, Net())
    with pytest.raises(IECUnsupportedError, match="does not reproduce"):
        GuidedOutput(events, x, target)


def through_numpy(call, x):
    return call(torch.from_numpy(x.numpy().copy()), 3)


def not_from_the_network(call, x):
    return 2 * x


def from_another_tensor(call, x):
    return call(torch.zeros(2, 3, 4, 4), 3)


@pytest.mark.parametrize("glue", [through_numpy, not_from_the_network, from_another_tensor])
def test_an_output_that_does_not_come_from_the_sample_through_the_network_is_refused(glue):
    x = noise(2, 3, 4, 4)
    events, target = recorded(glue, x, Net())
    with pytest.raises(IECUnsupportedError, match="does not depend on the sample"):
        GuidedOutput(events, x, target)


def test_the_check_makes_no_evaluation():
    calls, x = [], noise(2, 3, 4, 4)

    def net(x, t, context=None):
        calls.append(t)
        return Net()(x, t, context)

    events, target = recorded(guided, x, net)
    guided_output = GuidedOutput(events, x, target)
    assert len(calls) == 1
    guided_output(x)
    assert len(calls) == 2
