import pytest
import torch
from tiny_models import noise, tiny_net, tiny_unet

import iec
from iec.experiments.samplers.epsilon_scaling import epsilon_scaled
from iec.experiments.samplers.sampled_with import network_changed
from iec.experiments.samplers.sampling import Sampling
from iec.experiments.samplers.time_shift import shifted_labels, time_shifted
from iec.method.ddim import alphas_cumprod_linear, spaced_timesteps
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import Participant, SpacedDDIMScheduler, attach

ALPHAS = alphas_cumprod_linear()


def generators(count=2):
    return [iec.image_generator(0, i) for i in range(count)]


def images(unet, num_steps=4):
    pipe = UnconditionalPipeline(unet, SpacedDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    attach(pipe, "clock", Participant())
    return torch.as_tensor(pipe(generators(), num_steps).images)


def test_a_scaled_run_is_a_hand_loop_with_the_prediction_divided():
    net = tiny_net()
    with epsilon_scaled(net, 1.25):
        found = images(net)
    x = iec.initial_noise(generators(), (3, 6, 6))
    timesteps = spaced_timesteps(4, "quad")
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, b = ALPHAS[t].item(), 1.0 if following is None else ALPHAS[following].item()
        eps = net(x, torch.tensor(t)).sample / 1.25
        x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, images(net))


def test_nothing_changed_is_bit_identical_and_leaves_no_hook():
    net = tiny_net()
    plain = images(net)
    with network_changed(net, Sampling(), SpacedDDIMScheduler()):
        assert not net._forward_hooks
        assert not net._forward_pre_hooks
        assert torch.equal(images(net), plain)
    with network_changed(net, Sampling(epsilon_scale=1.1, time_shift=40), SpacedDDIMScheduler()):
        assert net._forward_hooks
        assert net._forward_pre_hooks
        assert not torch.equal(images(net), plain)
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
    assert torch.equal(images(net), plain)


def test_a_scale_near_one_survives_bfloat16():
    unet = tiny_unet().bfloat16()
    x = noise(1, 3, 8, 8).bfloat16()
    plain = unet(x, 5).sample
    with epsilon_scaled(unet, 1.001):
        scaled = unet(x, 5).sample
    torch.testing.assert_close(scaled, plain.float() / 1.001, rtol=1e-6, atol=0)


def of_variance(value):
    x = noise(1, 3, 8, 8, dtype=torch.float64)
    return (x - x.mean()) / x.std() * value**0.5


def test_the_label_is_the_timestep_whose_noise_has_the_samples_variance():
    x = torch.cat([of_variance((1 - ALPHAS[t]).item()) for t in (390, 400, 417)])
    assert shifted_labels(x, 400, ALPHAS, 40).tolist() == [390, 400, 417]


def test_the_label_stays_in_the_window_and_among_the_timesteps():
    x = torch.cat([of_variance(1e-6), of_variance(4.0)])
    assert shifted_labels(x, 400, ALPHAS, 40).tolist() == [380, 420]
    assert shifted_labels(x, 990, ALPHAS, 40).tolist() == [970, 999]
    assert shifted_labels(x, 10, ALPHAS, 40, cutoff=0).tolist() == [0, 30]


@pytest.mark.parametrize(("timestep", "window"), [(400, 0), (200, 40), (3, 400)])
def test_without_a_window_or_below_the_cutoff_the_label_is_the_timestep(timestep, window):
    assert shifted_labels(of_variance(0.01), timestep, ALPHAS, window).tolist() == [timestep]


def test_labels_do_not_depend_on_the_rest_of_the_batch():
    x = torch.cat([of_variance(v) for v in (0.5, 0.9, 0.99)])
    together = shifted_labels(x, 500, ALPHAS, 200)
    assert together.tolist() == [shifted_labels(one[None], 500, ALPHAS, 200).item() for one in x]


def test_the_network_is_told_the_shifted_labels_from_the_second_step_on():
    net, told = tiny_net(), []

    def note(module, args):
        told.append(args[1])

    with time_shifted(net, 60, ALPHAS):
        handle = net.register_forward_pre_hook(note)
        states = []
        inside = net.conv.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        images(net)
        handle.remove()
        inside.remove()
    timesteps = spaced_timesteps(4, "quad")
    assert timesteps[0] == told[0].item()
    assert torch.equal(told[1], shifted_labels(states[1], timesteps[1], ALPHAS, 60))
    assert not torch.equal(told[1], torch.full((2,), timesteps[1]))
    assert told[2].tolist() == [timesteps[2]] * 2  # below the cutoff
