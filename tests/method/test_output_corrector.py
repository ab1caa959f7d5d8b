"""Corrections that evaluate nothing, in `iec.sample`: against Adams-Bashforth's rule written out."""

import math
from dataclasses import dataclass

import pytest
import torch

import iec
from iec.method.adams import AdamsConfig, adams_relaxation
from iec.method.calibrated import StepCoefficients
from iec.method.output_corrector import OutputChange, OutputCorrector

from . import reference
from .denoisers import Cached, Recorded, smooth

NONE = iec.IECConfig(num_iterations=0)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def timesteps_of(count):
    return [float(t) for t in reference.quad(count)]


def plan(steps=6, history=1, bands=1, constants=None, fill=None, **settings):
    """Random coefficients over the quad grid."""
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.rand(steps, history, bands, generator=generator, dtype=torch.float64)
    if fill is not None:
        coefficients.fill_(fill)
    return StepCoefficients(tuple(timesteps_of(steps)), coefficients, constants, **settings)


# The settings


@pytest.mark.parametrize("value", [None, 0, 0.0, 0.5, 1, 1.999])
def test_a_relaxation_in_its_range_is_taken(value):
    config = AdamsConfig(value)
    assert config.relaxation_over(10) == (adams_relaxation(10) if value is None else value)
    assert config.to_dict() == {"kind": "adams", "relaxation": value}


@pytest.mark.parametrize("value", [-0.1, 2, 2.5, math.inf, -math.inf, math.nan])
def test_a_relaxation_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^relaxation must lie in \[0, 2\), but is .*\.$"):
        AdamsConfig(value)


@pytest.mark.parametrize("value", ["0.5", True, (0.5,), {}, torch.tensor(0.5)])
def test_a_relaxation_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"^relaxation must be a number or None, but is .*\.$"):
        AdamsConfig(value)


def test_the_default_falls_towards_a_half():
    values = [adams_relaxation(steps) for steps in (1, 5, 10, 20, 100, 1000, 10**6)]
    assert values == sorted(values, reverse=True)
    assert all(0.5 < value <= 0.7 for value in values)
    assert values[-1] == pytest.approx(0.5, abs=1e-5)


def test_what_corrects_outputs_is_known_by_its_begin():
    assert isinstance(AdamsConfig(), OutputCorrector)
    assert isinstance(plan(), OutputCorrector)
    assert not isinstance(iec.IECConfig(), OutputCorrector)


# Adams' rule


def two_step(x, relaxation, steps):
    """x <- S_i(x, h_i + lambda (h_i - h_{i-1})); where quad lists a timestep again, its state is the same."""
    grid, last = reference.quad(steps), None
    for i, (timestep, pair) in enumerate(zip(grid, reference.pairs(grid), strict=True)):
        h = smooth(x, torch.full((len(x),), timestep))
        corrected = h if last is None else h + relaxation * (h - last)
        x = reference.ddim(x, corrected, *pair)
        if i + 1 < len(grid) and grid[i + 1] != timestep:
            last = h
    return x


@pytest.mark.parametrize("relaxation", [0.5, 0.8, None])
@pytest.mark.parametrize("steps", [1, 2, 6, 10, 40])
def test_adams_is_the_two_step_rule_written_out(steps, relaxation):
    x = noise(3, 2, 4, 4)
    value = adams_relaxation(steps) if relaxation is None else relaxation
    found = iec.sample(smooth, x, steps, correction=AdamsConfig(relaxation))
    torch.testing.assert_close(found, two_step(x, value, steps), rtol=0, atol=1e-12)


def test_the_half_is_adams_bashforths_coefficient():
    """Steps of equal length in s = sqrt(1 / alpha-bar - 1): x / sqrt(alpha-bar) moves by ds (3 h_i - h_{i-1}) / 2."""
    ratios = torch.linspace(0.05, 4, 21, dtype=torch.float64)
    x = noise(2, 3)
    y, last = x * math.sqrt(1 + 4.0**2), None
    for i in range(20, 0, -1):
        h = smooth(y / (1 + ratios[i] ** 2).sqrt(), torch.full((2,), i))
        y = y + (ratios[i - 1] - ratios[i]) * (h if last is None else 1.5 * h - 0.5 * last)
        last = h
    # A last step that ends at no noise; iec.sample makes it too.
    h = smooth(y / (1 + ratios[0] ** 2).sqrt(), torch.zeros(2))
    y = y - ratios[0] * (1.5 * h - 0.5 * last)
    found = iec.sample(smooth, x, 21, "linspace", alphas_cumprod=1 / (1 + ratios.square()), correction=AdamsConfig(0.5))
    torch.testing.assert_close(found, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 6, 40])
@pytest.mark.parametrize(
    "correction",
    [
        lambda steps: AdamsConfig(0.0),
        lambda steps: plan(steps, 1, fill=0.0),
        lambda steps: plan(steps, 2, 3, fill=0.0),
        lambda steps: plan(steps, 0),
        lambda steps: plan(steps, 2, constants=torch.zeros(steps, 2, dtype=torch.float64), fill=0.0),
    ],
    ids=["relaxation 0", "m 1", "m 2, bands", "m 0", "constants"],
)
def test_a_correction_of_zeros_is_bit_identical_to_none(correction, steps):
    x = noise(2, 2, 8, 8).float()
    assert torch.equal(
        iec.sample(smooth, x, steps, correction=correction(steps)), iec.sample(smooth, x, steps, config=NONE)
    )


@pytest.mark.parametrize("correction", [AdamsConfig(), plan(6, 2)])
def test_no_evaluation_is_added(correction):
    plain, corrected = Recorded(smooth), Recorded(smooth)
    x = noise(2, 2, 4, 4)
    iec.sample(plain, x, 6, config=NONE)
    state, summary = iec.sample(corrected, x, 6, correction=correction, return_summary=True)
    assert [call[:3] for call in corrected.calls] == [call[:3] for call in plain.calls]
    assert (summary.full_evaluations, summary.cached_evaluations) == (6, 0)
    assert not torch.allclose(state, plain.calls[-1][3])


def test_a_plan_is_the_sum_written_out():
    x, fitted = noise(2, 2, 8, 8), plan(6, 2, 1, noise(6, 2, seed=4))
    grid, states, outputs = reference.quad(6), x, []
    for i, (timestep, pair) in enumerate(zip(grid, reference.pairs(grid), strict=True)):
        outputs.append(smooth(states, torch.full((2,), timestep)))
        h = outputs[-1] + fitted.constants[i].view(1, 2, 1, 1)
        for j in range(2):
            if len(outputs) > j + 1:
                h = h + fitted.coefficients[i, j, 0] * (outputs[-1 - j] - outputs[-2 - j])
        states = reference.ddim(states, h, *pair)
    assert len(set(grid)) == 6
    torch.testing.assert_close(iec.sample(smooth, x, 6, correction=fitted), states, rtol=0, atol=1e-12)


def test_a_step_that_a_cache_served_otherwise_than_in_the_fit_is_adams():
    x, served = noise(2, 2, 4, 4), (True, True, False, False, True, False)
    _, summary = iec.sample(Cached(2), x, 6, correction=plan(6, 1, full_steps=served), return_summary=True)
    full = [bool(record.full) for record in summary.steps]
    assert full == [True, False] * 3
    expected = ["plan" if a == b else "adams" for a, b in zip(full, served, strict=True)]
    assert [record.rule for record in summary.steps] == ["none", *expected[1:]]


def test_iec_and_a_correction_of_outputs_go_together():
    """Each step: the corrected output makes x^(0), which IEC then corrects with raw outputs."""
    x, steps, relaxation = noise(2, 3), 6, 0.6
    grid, last, state = reference.quad(steps), None, x
    for timestep, pair in zip(grid, reference.pairs(grid), strict=True):
        t = torch.full((2,), timestep)
        h = smooth(state, t)
        first = reference.ddim(state, h if last is None else h + relaxation * (h - last), *pair)
        last, before = h, state
        state = first + 0.5 * (reference.ddim(before, smooth(first, t), *pair) - first)
    found = iec.sample(smooth, x, steps, config=iec.IECConfig(tolerance=0.0), correction=AdamsConfig(relaxation))
    torch.testing.assert_close(found, state, rtol=0, atol=1e-12)


# The summary


def test_the_summary_names_the_rule_and_the_size_of_every_step():
    recorded, x = Recorded(smooth), noise(3, 2, 4, 4)
    _, summary = iec.sample(recorded, x, 5, correction=AdamsConfig(0.5), return_summary=True)
    outputs = [smooth(state, torch.full((3,), t)) for _, _, t, state in recorded.calls]
    assert [record.rule for record in summary.steps] == ["none"] + 4 * ["adams"]
    assert summary.by_rule("adams") == [1, 2, 3, 4]
    assert summary.steps[0].change is None
    for i in range(1, 5):
        for image in range(3):
            size = 0.5 * (outputs[i] - outputs[i - 1])[image].norm() / outputs[i][image].norm()
            assert summary.steps[i].change[image].item() == pytest.approx(size.item(), rel=1e-12)
    lines = str(summary).splitlines()
    assert "outputs of 4 by adams corrected" in lines[0]
    assert lines[1].endswith("added to the output")
    assert "adams" in lines[3]
    written = summary.to_dict()["steps"]
    assert written[0]["change"] is None
    assert len(written[2]["change"]) == 3
    assert written[2]["rule"] == "adams"


# One of one's own


def test_a_correction_of_ones_own_is_asked_before_every_step():
    asked = []

    @dataclass
    class Doubling:
        def begin(self, timesteps):
            asked.append(list(timesteps))
            return self

        def before_step(self, timestep, output, full=True):
            asked.append(timestep)
            return OutputChange(output.clone(), "plan")

    x = noise(2, 3)
    found = iec.sample(smooth, x, 5, correction=Doubling())
    assert asked == [timesteps_of(5), *timesteps_of(5)]
    assert torch.equal(found, iec.sample(lambda x, t: 2 * smooth(x, t), x, 5, config=NONE))


# Bad input


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"correction": AdamsConfig(), "sampler": "plms"}, ValueError, "PLMS extrapolates .* sampler='ddim'"),
        ({"correction": AdamsConfig(), "eta": 0.5}, ValueError, "eta must be 0"),
        ({"correction": "adams"}, TypeError, "AdamsConfig or a plan, but is a str"),
        ({"correction": 0.5}, TypeError, "AdamsConfig or a plan, but is a float"),
        ({"correction": iec.IECConfig()}, TypeError, "AdamsConfig or a plan, but is a IECConfig"),
        ({"correction": plan(7)}, ValueError, "calibrated for 7 steps, but the run has 6"),
        ({"correction": plan(6), "spacing": "linspace"}, ValueError, "calibrated for the timesteps 800, .* 999"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(settings, error, sentence):
    recorded = Recorded(smooth)
    generators = [torch.Generator(), torch.Generator()]
    with pytest.raises(error, match=sentence) as raised:
        iec.sample(recorded, noise(2, 2, 4, 4), 6, generators=generators, **settings)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")
    assert recorded.calls == []


def test_another_number_of_channels_is_refused_as_soon_as_it_is_seen():
    recorded = Recorded(smooth)
    with pytest.raises(ValueError, match="calibrated for outputs of 3 channels, but the run has 2"):
        iec.sample(recorded, noise(2, 2, 4, 4), 6, correction=plan(6, constants=torch.zeros(6, 3)))
    assert len(recorded.calls) == 1
