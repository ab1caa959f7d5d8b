"""A float network and its quantized student as one network over twice the rows, which asks at every unit.

The first half of the rows is what the student computes, the second what the float network does. Everything between the
units treats rows alike; at a unit the pass is suspended, for the asker to train it and to say what comes out of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.attention import OperandProcessor
from iec.efficient.quantization.network import replace_modules
from iec.efficient.quantization.reconstruction.roles import Reentry
from iec.efficient.quantization.reconstruction.rows import map_rows, take
from iec.efficient.quantization.reconstruction.samples import Samples
from iec.efficient.quantization.reconstruction.suspending import Suspended, ask
from iec.efficient.quantization.reconstruction.units import frozen_copy
from iec.method.clock import Clock, current_clock


@dataclass(frozen=True)
class Call:
    """A call's arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A pass has come to a unit: what the student is given there, and what the float network is."""

    unit: str
    student: Call
    teacher: Call


def twin_of(student: nn.Module, units: Iterable[str], reentry: Reentry | None) -> Any:
    """The twin of a quantized network and the float one it stands for."""
    twin = frozen_copy(student)
    replace_modules(twin, {twin.get_submodule(name): _Unit(name) for name in units})
    for module in twin.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, OperandProcessor):
            for name, quantizer in processor.operands.items():
                processor.operands[name] = _FirstHalf(quantizer)
    if reentry is not None:
        twin.get_submodule(reentry.resnet).register_forward_pre_hook(_reenter)
    return twin


def suspended_pass(twin: Any, samples: Samples, rows: slice, num_steps: int, reentry: Reentry | None) -> Suspended:
    """A pass over these samples, which asks a `Question` at every unit and takes the output of both halves."""

    def run() -> None:
        inputs = take(dict(samples.inputs), len(samples), rows)
        count = rows.stop - rows.start
        doubled = map_rows(inputs, count, lambda x: torch.cat([x, x]))
        with torch.no_grad(), Clock(num_steps) as clock:
            clock.sample_steps = samples.steps[rows]
            if reentry is not None:
                clock.storage[Reentry] = reentry.main[rows], reentry.cached[rows]
            twin(**doubled)

    return Suspended(run)


class _Unit(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        sample_steps = current_clock().sample_steps
        assert sample_steps is not None
        count = 2 * len(sample_steps)
        student, teacher = (
            Call(map_rows(args, count, half), map_rows(kwargs, count, half)) for half in (_first_half, _second_half)
        )
        return ask(Question(self.name, student, teacher))


class _FirstHalf(nn.Module):
    """A quantizer that leaves the second half of the rows alone."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.quantizer(_first_half(x)), _second_half(x)])


def _reenter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    main, cached = current_clock().storage[Reentry]
    concatenation = args[0].clone()
    (rows,) = cached.nonzero(as_tuple=True)
    concatenation[rows, : main.shape[1]] = main[rows]
    return concatenation, *args[1:]


def _first_half(x: torch.Tensor) -> torch.Tensor:
    return x[: len(x) // 2]


def _second_half(x: torch.Tensor) -> torch.Tensor:
    return x[len(x) // 2 :]
