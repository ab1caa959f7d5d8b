"""Local reconstruction of a calibrated plan: one unit after another, in the order in which the network runs them.

One twin pass over all samples serves all units: it is suspended at each, batch by batch, so that no part of the network
is computed twice, and every unit is given what the units before it, as they were reconstructed, give.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficient.quantization.config import QuantizationConfig
from iec.efficient.quantization.coverage import coverage
from iec.efficient.quantization.network import quantize_network, replace_modules
from iec.efficient.quantization.plan import QuantizationPlan
from iec.efficient.quantization.reconstruction.config import ReconstructionConfig
from iec.efficient.quantization.reconstruction.finished import FinishedUnits
from iec.efficient.quantization.reconstruction.part import part_of
from iec.efficient.quantization.reconstruction.record import UnitRecord
from iec.efficient.quantization.reconstruction.roles import (
    REENTERED,
    Reentry,
    roles_of,
    samples_of,
    trained_units,
)
from iec.efficient.quantization.reconstruction.rows import join
from iec.efficient.quantization.reconstruction.samples import Samples
from iec.efficient.quantization.reconstruction.training import Task, train
from iec.efficient.quantization.reconstruction.twin import Call, Question, suspended_pass, twin_of
from iec.efficient.quantization.reconstruction.units import frozen_copy, units_of
from iec.method.clock import Clock
from iec.storage.fingerprint import tensors_fingerprint


def reconstruct(
    network: nn.Module,
    plan: QuantizationPlan,
    samples: Samples,
    reentry: Reentry | None = None,
    folder: str | Path | None = None,
    on_progress: Callable[[int], None] = lambda left: None,
) -> QuantizationPlan:
    """`plan` with the units of `network`, which is float and stays as it is, reconstructed as its config says.

    reentry: what a cache changes. With one, units inside the skipped region train on the samples of full steps alone,
    units from the re-entry on train their weights and biases too, and with 8 bits only these are trained.
    folder: where what was found of each unit is written as soon as it is found, and from where it is taken up again, to
    the same bytes. on_progress(left): called after each unit, with how many are left.
    Raises ValueError where the folder is of other settings.
    """
    config = plan.config.reconstruction
    if config is None:
        raise ValueError("The config of this plan asks for no reconstruction.")
    finished = FinishedUnits(folder, _identity(plan, samples, reentry))
    for part in finished.parts.values():
        plan = plan.with_part(part)
    teacher, student = frozen_copy(network), frozen_copy(network)
    covered = coverage(network, replace(plan.config, storage="simulate"))
    layers = quantize_network(
        student, covered, plan.weights, plan.activations, plan.num_steps, plan.reconstructed
    ).layers
    units = units_of(teacher, layers, config.granularity)
    roles = roles_of(units, reentry)
    trained = trained_units(roles, reentry, plan.config.weights)
    batches = samples.batches(config.batch_size)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        twin = twin_of(student, units, reentry)
        passes = [suspended_pass(twin, samples, rows, plan.num_steps, reentry) for rows in batches]
        for one in passes:
            stack.callback(one.close)
        stack.enter_context(Clock(plan.num_steps))
        questions: list[Question | None] = [one.advance() for one in passes]
        while questions[0] is not None:
            name = questions[0].unit
            task = _task(questions, batches, samples, teacher, samples_of(roles[name], samples.steps, reentry))
            if name in trained and name not in finished.parts and len(task.rows):
                unit = student.get_submodule(name)
                found, record = _improved(unit, name, task, config, roles[name], trained.index(name))
                replace_modules(student, {unit: found})
                part = part_of(plan, name, found, record)
                finished.add(part)
                plan = plan.with_part(part)
                on_progress(len(trained) - len(finished.parts))
            unit = student.get_submodule(name)
            answers = [torch.cat([task.output(unit, rows), task.target[rows]]) for rows in batches]
            del task
            questions = [one.advance(answer) for one, answer in zip(passes, answers, strict=True)]
    return plan


def count_units(network: nn.Module, config: QuantizationConfig) -> int:
    """How many units a network has, of which some may not need to be reconstructed."""
    assert config.reconstruction is not None
    layers = [target.name for target in coverage(network, config).layers]
    return len(units_of(network, layers, config.reconstruction.granularity))


def _task(
    questions: Sequence[Any], batches: Sequence[slice], samples: Samples, teacher: nn.Module, rows: torch.Tensor
) -> Task:
    """What the float unit gives for all batches, as the task of the quantized one."""
    unit = teacher.get_submodule(questions[0].unit)
    target = torch.cat([unit(*question.teacher.args, **question.teacher.kwargs) for question in questions])
    counts = [batch.stop - batch.start for batch in batches]
    args, kwargs = join([(question.student.args, question.student.kwargs) for question in questions], counts)
    return Task(Call(args, kwargs), target, samples.steps, rows)


def _improved(
    unit: nn.Module, name: str, task: Task, config: ReconstructionConfig, role: int, index: int
) -> tuple[nn.Module, UnitRecord]:
    """The unit trained, or as it is where that is no better."""
    trained = frozen_copy(unit)
    train(trained, task, config, role == REENTERED, torch.Generator().manual_seed(index))
    before, after = task.error(unit, config.batch_size), task.error(trained, config.batch_size)
    better = after < before
    return trained if better else unit, UnitRecord(name, role, len(task.rows), before, after, better)


def _identity(plan: QuantizationPlan, samples: Samples, reentry: Reentry | None) -> dict[str, Any]:
    """What decides every byte of the result."""
    tensors = {f"input/{name}": x for name, x in samples.inputs.items() if isinstance(x, torch.Tensor)}
    tensors["steps"] = samples.steps
    if reentry is not None:
        tensors |= {"main": reentry.main, "cached": reentry.cached}
    return {
        "model": plan.model,
        "config": asdict(plan.config),
        "grids": tensors_fingerprint(plan.tensors()),
        "samples": tensors_fingerprint(tensors),
        "roles": None if reentry is None else dict(reentry.roles),
    }
