"""The loop over steps for a bare denoiser: DDIM or PLMS, corrected."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch

from iec.method import plms
from iec.method.cache import RunCache, StepCaches
from iec.method.clock import Clock
from iec.method.config import IECConfig
from iec.method.correction import Predict, correct
from iec.method.ddim import Coefficients, Spacing, alpha_pairs, alphas_cumprod_linear, coefficients, spaced_timesteps
from iec.method.errors import require_finite
from iec.method.output_corrector import OutputCorrector
from iec.method.steps import select_steps
from iec.method.summary import StepRecord, Summary

Denoiser = Callable[[torch.Tensor, torch.Tensor], Any]

_PAPER = IECConfig()


@dataclass(frozen=True)
class _Step:
    """One network call: the timestep it evaluates at and the step it then takes."""

    timestep: int
    coefficients: Coefficients


@overload
def sample(
    denoiser: Denoiser,
    x_T: torch.Tensor,
    num_steps: int = ...,
    spacing: Spacing = ...,
    sampler: Literal["ddim", "plms"] = ...,
    eta: float = ...,
    alphas_cumprod: torch.Tensor | None = ...,
    generators: Sequence[torch.Generator] | None = ...,
    config: IECConfig | None = ...,
    correction: OutputCorrector | None = ...,
    *,
    drop_duplicates: bool = ...,
    return_summary: Literal[False] = ...,
) -> torch.Tensor: ...


@overload
def sample(
    denoiser: Denoiser,
    x_T: torch.Tensor,
    num_steps: int = ...,
    spacing: Spacing = ...,
    sampler: Literal["ddim", "plms"] = ...,
    eta: float = ...,
    alphas_cumprod: torch.Tensor | None = ...,
    generators: Sequence[torch.Generator] | None = ...,
    config: IECConfig | None = ...,
    correction: OutputCorrector | None = ...,
    *,
    drop_duplicates: bool = ...,
    return_summary: Literal[True],
) -> tuple[torch.Tensor, Summary]: ...


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x_T: torch.Tensor,
    num_steps: int = 100,
    spacing: Spacing = "quad",
    sampler: Literal["ddim", "plms"] = "ddim",
    eta: float = 0.0,
    alphas_cumprod: torch.Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    config: IECConfig | None = _PAPER,
    correction: OutputCorrector | None = None,
    *,
    drop_duplicates: bool = False,
    return_summary: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, Summary]:
    """Sample x_0 from the noise x_T [B, ...], correcting the steps that `config` selects (paper Eq. 3-6, 10-13).

    denoiser: (x [B, ...], t int64 [B]) -> eps, or an object with `.sample`.
    spacing: `quad`, `uniform` or `linspace` (see `spaced_timesteps`); `drop_duplicates` removes quad's no-op steps.
    sampler: `ddim`, or `plms` with num_steps + 1 network calls, each of which is a step.
    eta: 0 is deterministic; above 0, `generators` holds one generator per sample, and every pass of a step uses the
        same noise.
    alphas_cumprod: alpha-bar [1000]; by default of 1000 linear betas from 1e-4 to 2e-2.
    config: IEC, the paper's correction; None for none.
    correction: an `AdamsConfig` or a plan, which changes the outputs before each step and evaluates nothing; with it,
        IEC is off unless `config` is given too.

    The state is float32 or better, the denoiser is called in its own dtype (x_T's for a plain function), and x_0
    comes back in the dtype of x_T. Raises ValueError or TypeError for bad settings before the first evaluation, and
    NonFiniteError, naming the step, where the state becomes infinite or NaN.
    """
    if not callable(denoiser):
        raise TypeError(f"The denoiser must be callable as denoiser(x, t), but is a {type(denoiser).__name__}.")
    if not isinstance(x_T, torch.Tensor) or not x_T.is_floating_point() or x_T.dim() < 2:
        raise TypeError("x_T must be a floating-point tensor with a batch axis and at least one more.")
    if len(x_T) == 0:
        raise ValueError("x_T holds no sample: its batch axis is empty.")
    if config is not None and not isinstance(config, IECConfig):
        raise TypeError(f"config must be an IECConfig or None, but is a {type(config).__name__}.")
    if correction is not None:
        _require_correctable(correction, sampler, eta)
        config = None if config is _PAPER else config
    if isinstance(generators, torch.Generator):
        raise TypeError("generators must be a list with one generator per sample, but is a single generator.")
    config = IECConfig(num_iterations=0) if config is None else config
    steps = _steps(num_steps, spacing, sampler, eta, alphas_cumprod, drop_duplicates)
    selected = select_steps(config.steps, len(steps)) if config.num_iterations else frozenset()
    noise = _noise(x_T, eta, generators)
    network_dtype = _network_dtype(denoiser, x_T)
    x = x_T.to(torch.promote_types(x_T.dtype, torch.float32))
    history = _History(sampler)
    corrector = None if correction is None else correction.begin([float(step.timestep) for step in steps])
    summary = Summary(len(steps), len(x))
    clock = Clock(len(steps))
    caches = [RunCache(clock)]
    with clock:
        for i, step in enumerate(steps):
            started = time.perf_counter()
            record = StepRecord(i, step.timestep, i in selected)
            t = torch.full((len(x),), step.timestep, dtype=torch.int64, device=x.device)
            predict = _predictor(denoiser, t, network_dtype, x.dtype)
            step_caches = StepCaches(caches, config.cache)
            eps: torch.Tensor | None = predict(x)
            step_caches.main_done()
            full = step_caches.was_full()
            record.count(full)
            update = history.step_map(i, x, step.coefficients, next(noise))
            assert eps is not None
            if corrector is not None:
                eps = record.add_change(corrector.before_step(float(step.timestep), eps, full), eps)
            x_prev = update(eps)
            require_finite(x_prev, i, step.timestep)
            if record.selected and (full or config.cached_steps):
                kept_output = eps if history.needs_output else None
                del eps  # not needed any more: the state alone is iterated, unless a history keeps the output
                result = correct(
                    x_prev,
                    step_caches.counted(predict, clock, record),
                    update,
                    config,
                    output=kept_output,
                    settle=step_caches.settle,
                )
                x_prev, eps = result.state, result.output
                record.corrected, record.residuals, record.fell_back = True, result.residuals, result.fell_back
            history.extend(i, x, eps)
            x = x_prev
            clock.advance()
            record.seconds = time.perf_counter() - started
            summary.steps.append(record)
    if x.dtype != x_T.dtype:
        x = x.to(x_T.dtype)
        require_finite(x, len(steps) - 1, steps[-1].timestep)
    return (x, summary) if return_summary else x


def _require_correctable(correction: OutputCorrector, sampler: str, eta: float) -> None:
    if not isinstance(correction, OutputCorrector):
        raise TypeError(f"correction must be an AdamsConfig or a plan, but is a {type(correction).__name__}.")
    if sampler != "ddim":
        raise ValueError("PLMS extrapolates its outputs already: correct them with sampler='ddim'.")
    if eta:
        raise ValueError("Outputs are corrected towards a deterministic trajectory: eta must be 0.")


def _steps(
    num_steps: int,
    spacing: Spacing,
    sampler: str,
    eta: float,
    alphas_cumprod: torch.Tensor | None,
    drop_duplicates: bool,
) -> list[_Step]:
    if sampler not in ("ddim", "plms"):
        raise ValueError(f"Unknown sampler '{sampler}': use ddim or plms.")
    if sampler == "plms" and eta:
        raise ValueError("PLMS is deterministic: eta must be 0.")
    alphas = alphas_cumprod_linear() if alphas_cumprod is None else alphas_cumprod
    if alphas.dim() != 1 or not ((alphas > 0) & (alphas < 1)).all() or (alphas.diff() > 0).any():
        raise ValueError("alphas_cumprod must be one decreasing row of numbers between 0 and 1.")
    timesteps = spaced_timesteps(num_steps, spacing, len(alphas), drop_duplicates)
    maps = [coefficients(*pair, eta) for pair in alpha_pairs(timesteps, alphas, spacing)]
    if sampler == "plms":
        return [_Step(call.timestep, maps[call.interval]) for call in plms.plms_calls(timesteps)]
    return [_Step(timestep, step) for timestep, step in zip(timesteps, maps, strict=True)]


class _History:
    """What a multistep sampler remembers; DDIM remembers nothing."""

    def __init__(self, sampler: str) -> None:
        self.needs_output = sampler == "plms"
        self.outputs: list[torch.Tensor] = []
        self.anchor: torch.Tensor | None = None

    def step_map(self, i: int, x: torch.Tensor, step: Coefficients, noise: torch.Tensor | None) -> Predict:
        """eps -> x_{t-1}, from the fixed x_t (PLMS call 1 steps again from the state of call 0)."""
        if not self.needs_output:
            return lambda eps: step.update(x, eps, noise)
        base = x if self.anchor is None or i != 1 else self.anchor
        return lambda eps: step.update(base, plms.combine(eps, self.outputs, i))

    def extend(self, i: int, x: torch.Tensor, output: torch.Tensor | None) -> None:
        if self.needs_output and output is not None:
            self.outputs = plms.extend(self.outputs, output, i)
            self.anchor = x if i == 0 else None


def _noise(
    x_T: torch.Tensor, eta: float, generators: Sequence[torch.Generator] | None
) -> Iterator[torch.Tensor | None]:
    """The noise of each step: one draw per sample and step, in float32 whatever the state's dtype."""
    if eta and (generators is None or len(generators) != len(x_T)):
        count = "none" if generators is None else len(generators)
        raise ValueError(f"With eta > 0, give one generator per sample: {len(x_T)} are needed, but got {count}.")

    def draws() -> Iterator[torch.Tensor | None]:
        dtype = torch.promote_types(x_T.dtype, torch.float32)
        while True:
            if not eta or generators is None:
                yield None
                continue
            parts = [torch.randn(x_T.shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in generators]
            yield torch.stack(parts).to(x_T.device, dtype)

    return draws()


def _network_dtype(denoiser: Denoiser, x_T: torch.Tensor) -> torch.dtype:
    if isinstance(denoiser, torch.nn.Module):
        for parameter in denoiser.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return x_T.dtype


def _predictor(denoiser: Denoiser, t: torch.Tensor, network: torch.dtype, state: torch.dtype) -> Predict:
    def predict(x: torch.Tensor) -> torch.Tensor:
        output = denoiser(x.to(network), t)
        eps = output if isinstance(output, torch.Tensor) else getattr(output, "sample", None)
        if not isinstance(eps, torch.Tensor):
            raise TypeError(
                "The denoiser must return a tensor or an object whose .sample is one, "
                f"but returned a {type(output).__name__}."
            )
        if eps.shape != x.shape:
            raise ValueError(f"The denoiser returned shape {list(eps.shape)} for a state of shape {list(x.shape)}.")
        return eps.to(state)

    return predict
