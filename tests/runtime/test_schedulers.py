"""The paper's spacings in a pipeline: against `iec.sample`, and against diffusers' own DDIM where they coincide."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import ddim_pipe, draw, image_generators, noise, recorded_inputs, tiny_net, tiny_unet

import iec
from iec.method import initial_noise, spaced_timesteps
from iec.runtime import SpacedDDIMScheduler

NONE = iec.IECConfig(num_iterations=0)


def from_pipeline(unet, scheduler, steps, eta, config):
    """The network inputs of a pipeline's run, and its images."""
    pipe = ddim_pipe(unet, scheduler)
    with recorded_inputs(unet) as inputs, iec.enabled(pipe, config):
        images = draw(pipe, steps, eta=eta)
    return inputs, images


def from_sample(unet, steps, spacing, eta, config, **kwargs):
    generators = image_generators(2)
    x = initial_noise(generators, (3, unet.config.sample_size, unet.config.sample_size))
    with recorded_inputs(unet) as inputs:
        state = iec.sample(unet, x, steps, spacing, eta=eta, generators=generators, config=config, **kwargs)
    return inputs, (state / 2 + 0.5).clamp(0, 1)


def assert_same_run(a, b):
    assert len(a[0]) == len(b[0])
    for x, y in zip([*a[0], a[1]], [*b[0], b[1]], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [NONE, iec.IECConfig.paper(), iec.IECConfig.released()], ids="none paper K2".split())
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("spacing", "steps", "drop"),
    [("quad", 8, False), ("uniform", 10, False), ("linspace", 7, False), ("quad", 100, False), ("quad", 100, True)],
)
def test_a_ddim_pipeline_with_it_equals_iec_sample(spacing, steps, drop, eta, config):
    net = tiny_net()
    scheduler = SpacedDDIMScheduler(spacing=spacing, drop_duplicates=drop)
    piped = from_pipeline(net, scheduler, steps, eta, config)
    sampled = from_sample(net, steps, spacing, eta, config, drop_duplicates=drop)
    assert len(piped[0]) >= (96 if drop else steps) * (1 + (config is not NONE))
    assert_same_run(piped, sampled)


def test_a_unet_in_a_ddim_pipeline_with_it_equals_iec_sample():
    unet = tiny_unet()
    config = iec.IECConfig.released()
    piped = from_pipeline(unet, SpacedDDIMScheduler(), 5, 1.0, config)
    assert_same_run(piped, from_sample(unet, 5, "quad", 1.0, config))


def test_the_timesteps_are_the_spacings_with_and_without_duplicates():
    scheduler = SpacedDDIMScheduler()
    scheduler.set_timesteps(100)
    assert scheduler.timesteps.tolist()[-14:] == [13, 11, 9, 8, 6, 5, 3, 2, 2, 1, 0, 0, 0, 0]
    assert len(scheduler.timesteps) == 100
    dropping = SpacedDDIMScheduler(drop_duplicates=True)
    dropping.set_timesteps(100)
    assert dropping.timesteps.tolist() == sorted(set(scheduler.timesteps.tolist()), reverse=True)
    assert len(dropping.timesteps) == 96


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_it_equals_diffusers_ddim_where_the_timesteps_coincide(prediction, eta, schedule):
    settings = {"beta_schedule": schedule, "prediction_type": prediction}
    ours = SpacedDDIMScheduler(spacing="uniform", **settings)
    theirs = DDIMScheduler(
        **settings, clip_sample=False, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False
    )
    theirs.alphas_cumprod = torch.cumprod(1 - theirs.betas.double(), 0)  # theirs are rounded to float32
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x, net = noise(2, 3, 6, 6), tiny_net()
    mine, other = (torch.Generator().manual_seed(5) for _ in range(2))
    for t in theirs.timesteps:
        output = net(x, t).sample
        step = ours.step(output, t, x, eta=eta, generator=mine)
        expected = theirs.step(output, t, x, eta=eta, generator=other)
        for name in ("prev_sample", "pred_original_sample"):
            scale = max(1, expected[name].abs().max().item())
            torch.testing.assert_close(step[name] / scale, expected[name] / scale, rtol=0, atol=5e-5)
        x = expected.prev_sample


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_prediction_types_name_the_same_step(prediction):
    """A network's eps, said as v or as x_0, gives the state that eps gives."""
    plain, other = SpacedDDIMScheduler(), SpacedDDIMScheduler(prediction_type=prediction)
    x, eps = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1)
    for scheduler in (plain, other):
        scheduler.set_timesteps(5)
    t = plain.timesteps[2]
    for scheduler in (plain, other):
        scheduler.set_begin_index(2)
    alpha = plain.alphas_cumprod[t].float()
    x_0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    said = x_0 if prediction == "sample" else alpha.sqrt() * eps - (1 - alpha).sqrt() * x_0
    expected = plain.step(eps, t, x).prev_sample
    torch.testing.assert_close(other.step(said, t, x).prev_sample, expected, rtol=1e-4, atol=1e-4)


def test_the_noise_may_be_given():
    scheduler = SpacedDDIMScheduler()
    scheduler.set_timesteps(5)
    x, eps, z = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1), noise(1, 3, 4, 4, seed=2)
    t = scheduler.timesteps[0]
    given = scheduler.step(eps, t, x, eta=1.0, variance_noise=z).prev_sample
    scheduler.set_timesteps(5)
    without = scheduler.step(eps, t, x, eta=1.0, variance_noise=torch.zeros_like(z)).prev_sample
    ratio = (given - without) / z
    assert ratio.min() > 0
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-4)


def test_it_survives_saving_and_loading(tmp_path):
    scheduler = SpacedDDIMScheduler(spacing="linspace", drop_duplicates=True, beta_end=3e-3, prediction_type="sample")
    scheduler.save_pretrained(tmp_path)
    loaded = SpacedDDIMScheduler.from_pretrained(tmp_path)
    rebuilt = SpacedDDIMScheduler.from_config(scheduler.config)
    for other in (loaded, rebuilt):
        assert type(other) is SpacedDDIMScheduler
        for name in ("spacing", "drop_duplicates", "beta_end", "prediction_type", "num_train_timesteps"):
            assert other.config[name] == scheduler.config[name]
        assert torch.equal(other.alphas_cumprod, scheduler.alphas_cumprod)


def test_it_takes_the_noise_schedule_of_another_scheduler():
    theirs = DDIMScheduler(beta_start=2e-4, beta_end=5e-3, beta_schedule="scaled_linear", prediction_type="sample")
    ours = SpacedDDIMScheduler.from_scheduler(theirs, "linspace", drop_duplicates=True)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert ours.config.prediction_type == "sample"
    assert ours.config.spacing == "linspace"
    assert ours.config.drop_duplicates is True
    trained = DDIMScheduler(trained_betas=[0.01, 0.02, 0.05], num_train_timesteps=3)
    ours = SpacedDDIMScheduler.from_scheduler(trained, "linspace")
    torch.testing.assert_close(ours.alphas_cumprod.float(), trained.alphas_cumprod)


@pytest.mark.parametrize("setting", [{"spacing": "leading"}, {"prediction_type": "flow"}])
def test_an_unknown_spacing_or_prediction_type_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting.values()))):
        SpacedDDIMScheduler(**setting)


def test_a_number_of_steps_that_the_spacing_cannot_take_is_refused():
    with pytest.raises(ValueError, match="linspace"):
        SpacedDDIMScheduler(spacing="uniform").set_timesteps(7)
    with pytest.raises(ValueError, match="1001"):
        SpacedDDIMScheduler().set_timesteps(1001)


def test_step_before_set_timesteps_is_refused():
    with pytest.raises(ValueError, match="set_timesteps"):
        SpacedDDIMScheduler().step(noise(1, 3, 4, 4), 5, noise(1, 3, 4, 4))


def test_a_timestep_outside_the_sequence_is_refused():
    scheduler = SpacedDDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="799"):
        scheduler.step(noise(1, 3, 4, 4), 799, noise(1, 3, 4, 4))


def test_it_begins_where_it_is_told():
    scheduler = SpacedDDIMScheduler()
    scheduler.set_timesteps(100)
    x, eps = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1)
    scheduler.set_begin_index(98)  # timestep 0, the third of four
    assert scheduler.begin_index == 98
    assert torch.equal(scheduler.step(eps, 0, x).prev_sample, x)
    last = scheduler.step(eps, 0, x)  # the fourth ends in the clean state
    assert scheduler.step_index == 100
    torch.testing.assert_close(last.prev_sample, last.pred_original_sample)
    assert not torch.equal(last.prev_sample, x)
    scheduler.set_timesteps(100)
    assert scheduler.begin_index is None
    assert scheduler.step_index is None


def test_without_a_begin_index_it_begins_at_the_given_timestep():
    timesteps = spaced_timesteps(10)
    runs = []
    for begin in (None, 4):
        scheduler = SpacedDDIMScheduler()
        scheduler.set_timesteps(10)
        if begin is not None:
            scheduler.set_begin_index(begin)
        x = noise(1, 3, 4, 4)
        for t in timesteps[4:]:
            x = scheduler.step(0.1 * x, t, x).prev_sample
        runs.append(x)
    assert torch.equal(*runs)


def test_it_adds_noise_and_leaves_the_networks_input_alone():
    scheduler = SpacedDDIMScheduler()
    x, z, t = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1), torch.tensor([3, 900])
    torch.testing.assert_close(scheduler.add_noise(x, z, t), DDIMScheduler().add_noise(x, z, t))
    assert scheduler.scale_model_input(x, 3) is x
    assert len(scheduler) == 1000


def test_a_tuple_on_request_and_the_dtype_of_the_sample():
    scheduler = SpacedDDIMScheduler()
    scheduler.set_timesteps(5)
    x = noise(1, 3, 4, 4).bfloat16()
    previous, original = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    assert previous.dtype == original.dtype == torch.bfloat16
