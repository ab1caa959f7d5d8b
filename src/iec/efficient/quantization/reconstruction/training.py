"""The training of one unit: its rounding and its grids, to give what the float unit gives."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.activations import StepQuantizer
from iec.efficient.quantization.layers import QuantizedLayer
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig
from iec.efficient.quantization.reconstruction.learned_weight import LearnedWeight
from iec.efficient.quantization.reconstruction.rounding import beta_at, rounding_loss
from iec.efficient.quantization.reconstruction.rows import take
from iec.efficient.quantization.reconstruction.twin import Call
from iec.method.clock import current_clock


class Task:
    """What a unit is to give: on `call`, of len(steps) samples each at its own step, the float unit's `target`.

    rows: the samples that count, int64.
    """

    def __init__(self, call: Call, target: torch.Tensor, steps: torch.Tensor, rows: torch.Tensor) -> None:
        self.call, self.target, self.steps, self.rows = call, target, steps, rows

    def output(self, unit: nn.Module, rows: torch.Tensor | slice) -> torch.Tensor:
        """What `unit` gives for these samples, in the run in progress."""
        current_clock().sample_steps = self.steps[rows]
        args, kwargs = take((self.call.args, self.call.kwargs), len(self.steps), rows)
        output: torch.Tensor = unit(*args, **kwargs)
        return output

    def loss(self, unit: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """The squared error for these samples, summed over channels, averaged over the rest (AdaRound's)."""
        squares = (self.output(unit, rows) - take(self.target, len(self.steps), rows)).square()
        mean: torch.Tensor = squares.sum(1 if squares.dim() == 4 else -1).mean()
        return mean

    def error(self, unit: nn.Module, batch_size: int) -> float:
        """`loss` over all samples that count."""
        with torch.no_grad():
            batches = torch.split(self.rows, batch_size)
            return sum(len(rows) * float(self.loss(unit, rows)) for rows in batches) / len(self.rows)


def train(unit: nn.Module, task: Task, config: ReconstructionConfig, retrain: bool, generator: torch.Generator) -> None:
    """Train a quantized unit in place, and round what was found.

    retrain: whether weights and biases are trained too. Raises RuntimeError outside a run.
    """
    groups = list(_groups(unit, config, retrain))
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    spacings = [quantizer.delta for quantizer in _quantizers(unit)]
    learned = [layer.weight for layer in quantized_layers_of(unit).values()]
    with torch.enable_grad():
        for iteration in range(config.iterations):
            picked = torch.randint(len(task.rows), (min(config.batch_size, len(task.rows)),), generator=generator)
            loss = task.loss(unit, task.rows[picked.to(task.rows.device)])
            beta = beta_at(iteration, config.iterations)
            if config.regularization and beta is not None:
                alphas = [alpha for weight in learned for alpha in _learned(weight).alphas]
                loss = loss + config.regularization * sum(rounding_loss(alpha, beta) for alpha in alphas)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for delta in spacings:
                    delta.clamp_(min=torch.finfo(delta.dtype).tiny)
    _harden(unit)


def quantized_layers_of(unit: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a unit, by their names inside it."""
    return {name: module for name, module in unit.named_modules() if isinstance(module, QuantizedLayer)}


def _groups(unit: nn.Module, config: ReconstructionConfig, retrain: bool) -> Iterator[dict[str, Any]]:
    """Put learned weights into the layers, and yield all that is trained, with its learning rate."""
    for layer in quantized_layers_of(unit).values():
        weight: Any = layer.original
        grids = [layer.weight.grid(part) for part in range(len(layer.widths))]
        learned = LearnedWeight(weight.weight, layer.widths, grids)
        learned.weight.requires_grad_(retrain)
        layer.weight = learned
        yield {"params": list(learned.alphas), "lr": config.weight_lr}
        yield {"params": list(learned.zero_points), "lr": config.zero_point_lr}
        if retrain:
            retrained = [learned.weight]
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach().clone())
                retrained.append(layer.bias)
            yield {"params": retrained, "lr": config.reentry_lr}
    for quantizer in _quantizers(unit):
        yield {"params": [quantizer.delta.requires_grad_()], "lr": config.activation_lr * quantizer.delta.mean().item()}
        yield {"params": [quantizer.zero_point.requires_grad_()], "lr": config.zero_point_lr}


def _harden(unit: nn.Module) -> None:
    for layer in quantized_layers_of(unit).values():
        layer.weight = _learned(layer.weight).hardened()
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    for quantizer in _quantizers(unit):
        quantizer.delta.requires_grad_(False)
        quantizer.zero_point.requires_grad_(False).round_().clamp_(0, (1 << quantizer.bits) - 1)


def _quantizers(unit: nn.Module) -> list[StepQuantizer]:
    return [module for module in unit.modules() if isinstance(module, StepQuantizer)]


def _learned(weight: nn.Module) -> LearnedWeight:
    assert isinstance(weight, LearnedWeight)
    return weight
