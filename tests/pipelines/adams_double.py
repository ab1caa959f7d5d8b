"""Adams' rule by another mechanism: a scheduler that applies it itself, in an unwrapped pipeline.

It takes the prediction of the clean state from diffusers' own step, goes by it to the noise prediction, and back.
"""

import copy
import functools

import torch


def adams_double(scheduler, relaxation=0.6):
    """`scheduler`, made to step with h_i + relaxation (h_i - h_{i-1}); its history begins with its timesteps."""
    base = type(scheduler)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self, *args, **kwargs):
        base.set_timesteps(self, *args, **kwargs)
        self.last = None

    @functools.wraps(base.step)
    def step(self, model_output, timestep, sample, *args, **kwargs):
        h = straight(self, model_output, timestep, sample)
        if self.last is not None:
            model_output = given_back(self, h + relaxation * (h - self.last), timestep, sample)
        self.last = h.clone()
        return base.step(self, model_output, timestep, sample, *args, **kwargs)

    def straight(self, output, timestep, sample):
        if predicts(self) in ("epsilon", "flow"):
            return output
        clean = base.step(copy.deepcopy(self), output, timestep, sample).pred_original_sample
        signal, noise = levels(self, timestep)
        return (sample - signal * clean) / noise

    def given_back(self, h, timestep, sample):
        if predicts(self) in ("epsilon", "flow"):
            return h
        signal, noise = levels(self, timestep)
        clean = (sample - noise * h) / signal
        if predicts(self) == "sample":
            return clean
        # v = alpha eps - sigma x0, with alpha^2 + sigma^2 = 1
        size = (signal**2 + noise**2) ** 0.5
        return (signal * h - noise * clean) / size

    scheduler.__class__ = type(base.__name__, (base,), {"set_timesteps": set_timesteps, "step": step})
    scheduler.last = None
    return scheduler


def predicts(scheduler):
    return scheduler.config.get("prediction_type", "flow")


def levels(scheduler, timestep):
    """What the state holds of the clean image, and of noise."""
    if hasattr(scheduler, "sigmas"):
        return 1.0, scheduler.sigmas[scheduler.timesteps.tolist().index(float(timestep))].item()
    alpha = scheduler.alphas_cumprod[int(timestep)].item()
    return alpha**0.5, (1 - alpha) ** 0.5


def evaluations(pipe, work):
    """What `work()` returns, and how often each network of the pipeline was called."""
    counts, handles = {}, []
    for name, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            counts[name] = 0

            def count(module, args, name=name):
                counts[name] += 1

            handles.append(network.register_forward_pre_hook(count))
    try:
        return work(), counts
    finally:
        for handle in handles:
            handle.remove()
