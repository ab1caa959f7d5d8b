"""Where x_t lies in the tensor that feeds the network: gathers walked back, against moving one element at a time."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_models import noise

from iec.pipelines.recording import Recorder
from iec.pipelines.source import find_source

GATHERS = {
    "first rows": lambda y: y[: max(1, len(y) // 2)],
    "every other": lambda y: y[..., ::2],
    "reversed rows": lambda y: y[list(range(len(y)))[::-1]],
    "transposed": lambda y: y.transpose(0, -1),
    "moved": lambda y: y.movedim(0, -1),
    "permuted": lambda y: y.permute(*reversed(range(y.dim()))),
    "flat": lambda y: y.flatten(),
    "reshaped": lambda y: y.reshape(1, -1),
    "unsqueezed": lambda y: y.unsqueeze(0),
    "squeezed": lambda y: y.squeeze() if y.numel() > 1 else y,
    "last chunk": lambda y: y.chunk(2, dim=0)[-1],
    "narrowed": lambda y: y.narrow(0, 0, max(1, y.shape[0] - 1)),
    "split": lambda y: y.split(max(1, y.shape[-1] - 1), dim=-1)[0],
    "cloned": lambda y: y.clone(),
    "contiguous": lambda y: y.contiguous(),
    "double": lambda y: y.double(),
    "cast": lambda y: y.to(torch.float32),
    "masked": lambda y: y[y.abs() < 1e9] if y.dim() == 1 else y,
}


def net(tensor):
    return torch.tanh(tensor) + tensor.flip(0)


def found_source(base, gather):
    """Record `gather(base)` and a network call on `base`; the source of the network's output in the gathered tensor."""
    recorder = Recorder()
    recorder.start()
    sample = gather(base)
    output = recorder.evaluate(net, (base,), {})
    events = recorder.stop()
    return find_source(events, sample, output), sample


def places_by_moving(base, gather):
    """For each element of `base`, the places of `gather(base)` that move with it."""
    reference = gather(base).flatten()
    moved = []
    for j in range(base.numel()):
        other = base.clone()
        other.view(-1)[j] += 100
        moved.append((gather(other).flatten() != reference).nonzero().flatten().tolist())
    return moved


@settings(max_examples=80)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    names=st.lists(st.sampled_from(sorted(GATHERS)), min_size=1, max_size=5),
)
def test_the_places_are_those_that_move(shape, names):
    def gather(y):
        for name in names:
            y = GATHERS[name](y)
        return y

    base = noise(*shape)
    assume(gather(base).numel() > 0)
    source, sample = found_source(base, gather)
    assume(sample is not base)
    assert source is not None
    assert source.tensor is base
    places = source.places.flatten().tolist()
    assert source.places.shape == sample.shape
    for j, moved in enumerate(places_by_moving(base, gather)):
        assert [i for i, place in enumerate(places) if place == j] == moved


@settings(max_examples=50)
@given(names=st.lists(st.sampled_from(sorted(GATHERS)), min_size=1, max_size=5))
def test_a_new_sample_comes_back_and_the_rest_stays(names):
    def gather(y):
        for name in names:
            y = GATHERS[name](y)
        return y

    base = noise(3, 2, 4)
    source, sample = found_source(base, gather)
    new = noise(*sample.shape, seed=1, dtype=sample.dtype)
    held = source.holding(new)
    assert held.shape == base.shape
    assert held.dtype == base.dtype
    torch.testing.assert_close(gather(held), new.to(sample.dtype))
    changed = (held != base).sum().item()
    assert changed <= new.numel()
    assert torch.equal(found_source(base, gather)[1], sample)  # the base itself was not written


def test_a_sample_that_feeds_the_network_is_its_own_source():
    x = noise(2, 3)
    recorder = Recorder()
    recorder.start()
    output = recorder.evaluate(net, (2 * x,), {})
    source = find_source(recorder.stop(), x, output)
    assert source.tensor is x
    assert source.places is None
    assert torch.equal(source.holding(x), x)


@pytest.mark.parametrize("nothing", [lambda y: y.to(torch.float32), lambda y: y.contiguous(), lambda y: y.float()])
def test_a_cast_or_copy_that_returns_its_own_argument_is_passed_over(nothing):
    base = noise(4, 3)
    source, sample = found_source(base, lambda y: nothing(y[1:3]))
    assert source is not None
    assert source.tensor is base
    assert torch.equal(source.holding(sample + 1)[1:3], sample + 1)


def test_a_sample_in_another_dtype_is_put_back_in_the_networks():
    base = noise(2, 6).bfloat16()
    source, sample = found_source(base, lambda y: y[:, 2:4].float())
    assert sample.dtype == torch.float32
    held = source.holding(sample + 1)
    assert held.dtype == torch.bfloat16
    assert torch.equal(held[:, 2:4], (sample + 1).bfloat16())
    assert torch.equal(held[:, [0, 1, 4, 5]], base[:, [0, 1, 4, 5]])


@pytest.mark.parametrize("function", [lambda y: 2 * y, lambda y: y + 0, lambda y: y[:1] * 1, torch.sin, torch.cumsum])
def test_what_is_no_gather_has_no_source(function):
    base = noise(2, 3)
    source, _ = found_source(base, function if function is not torch.cumsum else lambda y: y.cumsum(0))
    assert source is None


@pytest.mark.parametrize(
    "repeat", [lambda y: y.expand(4, 2, 3), lambda y: y[[0, 0, 1]], lambda y: y.unsqueeze(1).expand(2, 5, 3)]
)
def test_a_sample_that_holds_an_element_twice_has_no_source(repeat):
    """Two corrected values would compete for one place, and one of them would be lost without a word."""
    base = noise(2, 3)
    source, _ = found_source(base, repeat)
    assert source is None
