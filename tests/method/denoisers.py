"""Small denoisers with known mathematics."""

from collections.abc import Callable

import torch

from iec.method import current_clock


def smooth(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A nonlinear denoiser that depends on the timestep and acts on each element alone."""
    phase = (t.to(x.dtype) / 300).view(-1, *[1] * (x.dim() - 1))
    return 0.6 * x + 0.4 * torch.sin(3 * x + phase)


class Recorded:
    """A denoiser that remembers its calls as (step, pass, timestep, input)."""

    def __init__(self, denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.denoiser = denoiser
        self.calls: list[tuple[int, int, int, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        clock = current_clock()
        self.calls.append((clock.step, clock.pass_index, int(t[0]), x.clone()))
        return self.denoiser(x, t)

    def input(self, step: int, pass_index: int) -> torch.Tensor:
        (found,) = [x for s, p, _, x in self.calls if (s, p) == (step, pass_index)]
        return found


def shallow(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def deep(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.sin(3 * x + (t.to(x.dtype) / 300).view(-1, *[1] * (x.dim() - 1)))


class Cached:
    """A feature cache on a uniform schedule: `deep` is computed every `interval` steps and read from storage between.

    spoil: (x, deep feature) -> deep feature, to break what a pass computes.
    """

    def __init__(self, interval: int, spoil: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self.interval = interval
        self.spoil = spoil

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        clock = current_clock()
        full = clock.cache_policy == "full" or clock.step % self.interval == 0
        clock.record(full)
        if full:
            feature = deep(x, t)
            clock.storage["deep"] = feature if self.spoil is None else self.spoil(feature)
        return shallow(x) + clock.storage["deep"]


class GuidedCached(Cached):
    """The same cache under classifier-free guidance: its rows are [unconditional; conditional]."""

    def __init__(self, interval: int, scale: float = 2.0, spoil: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(interval, spoil)
        self.scale = scale

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        unconditional, conditional = super().__call__(torch.cat([x, 0.8 * x + 0.1]), torch.cat([t, t])).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


class MixtureDenoiser:
    """The exact eps of data drawn from a mixture of isotropic Gaussians (modes [k, d], one standard deviation)."""

    def __init__(self, modes: torch.Tensor, weights: torch.Tensor, deviation: float, alphas: torch.Tensor) -> None:
        self.modes, self.weights, self.deviation, self.alphas = modes, weights, deviation, alphas

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = self.alphas[int(t[0])]
        variance = alpha * self.deviation**2 + 1 - alpha
        centres = alpha.sqrt() * self.modes
        logits = self.weights.log() - (x[:, None] - centres).square().sum(-1) / (2 * variance)
        expected = torch.softmax(logits, 1) @ centres
        return (1 - alpha).sqrt() * (x - expected) / variance
