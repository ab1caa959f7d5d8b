"""Overheads, as ratios within one run and as CPU time per step: `make bench`.

Everything is measured in turn, several times over, and the median of each ratio is printed, so that a machine that
changes its speed under way changes both parts of a ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from rich.console import Console
from rich.table import Table

import iec
from iec.method import StepCoefficients
from iec.models.loading import load_pipeline
from iec.pipelines.correction_plan import FitReport
from iec.pipelines.deployment import model_identity, scheduler_settings, technique_of
from iec.runtime import Sampler

STEPS = 10
PAPER = iec.IECConfig()


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(work: Callable[[], object], unit: Callable[[], object], rounds: int) -> list[float]:
    """Time of `work` over time of `unit`, measured in turn."""
    work(), unit()
    return [seconds(work) / seconds(unit) for _ in range(rounds)]


def made_up_plan(pipe) -> iec.CorrectionPlan:
    """The largest plan that a calibration chooses: two differences in three bands, and constants."""
    pipe.scheduler.set_timesteps(STEPS)
    sampler = Sampler.as_set(pipe.scheduler)
    numbers = torch.Generator().manual_seed(0)
    coefficients = 0.1 * torch.rand(STEPS, 2, 3, generator=numbers, dtype=torch.float64)
    constants = 0.01 * torch.rand(STEPS, 3, generator=numbers, dtype=torch.float64)
    fitted = StepCoefficients(sampler.timesteps, coefficients, constants)
    report = FitReport(64, 0, 6, "full precision", 1.0, 0.1)
    return iec.CorrectionPlan(
        sampler,
        model_identity(pipe),
        technique_of(pipe),
        (3, 32, 32),
        report,
        fitted,
        scheduler=scheduler_settings(pipe.scheduler),
    )


def run(pipe, batch_size: int, config: iec.IECConfig | iec.AdamsConfig | iec.CorrectionPlan | None = None) -> None:
    """One corrected (or plain) run of the embedded model."""
    generators = [iec.image_generator(0, i) for i in range(batch_size)]
    if config is None:
        pipe(generator=generators, num_inference_steps=STEPS)
        return
    with iec.enabled(pipe, config):
        pipe(generator=generators, num_inference_steps=STEPS)


def evaluations(pipe, batch_size: int, count: int) -> None:
    """`count` bare evaluations of the network."""
    x = torch.randn(batch_size, 3, 32, 32)
    with torch.no_grad():
        for t in range(count):
            pipe.unet(x, t)


@contextmanager
def instant(network) -> Iterator[None]:
    """The network answers at once, so that what is left is the loop's own time."""
    network.forward = lambda x, t: UNet2DOutput(sample=0.1 * x)
    try:
        yield
    finally:
        del network.forward


def own_milliseconds(pipe, batch_size: int, rounds: int, config) -> list[float]:
    """CPU time per step of a run less that of its evaluations; corrected, with recording and self-check on."""

    def cpu(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    count = 2 * STEPS if isinstance(config, iec.IECConfig) else STEPS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread that waits for work would be counted as work
    with instant(pipe.unet), nullcontext() if config is None else iec.enabled(pipe, config):
        run(pipe, batch_size)
        pairs = [
            (cpu(lambda: run(pipe, batch_size)), cpu(lambda: evaluations(pipe, batch_size, count)))
            for _ in range(rounds)
        ]
    torch.set_num_threads(threads)
    return [1e3 * (whole - network) / STEPS for whole, network in pairs]


def milliseconds_of_an_evaluation(pipe, batch_size: int, rounds: int) -> float:
    """CPU time of one evaluation, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluations(pipe, batch_size, 1)
    found = []
    for _ in range(rounds):
        began = time.process_time()
        evaluations(pipe, batch_size, 1)
        found.append(1e3 * (time.process_time() - began))
    torch.set_num_threads(threads)
    return statistics.median(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    pipe = load_pipeline()
    table = Table(title=f"Overheads, embedded model, float32, T={STEPS}, {torch.get_num_threads()} threads")
    for column in ("what", "batch", "median", "min", "max", "wanted"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def add(what: str, batch: int, found: list[float], wanted: str = "") -> None:
        table.add_row(what, str(batch), *(f"{f(found):.3f}" for f in (statistics.median, min, max)), wanted)

    for batch in (1, 16, 64):
        count = 2 * STEPS  # one main evaluation and one correction pass a step
        found = ratios(
            lambda batch=batch: run(pipe, batch, PAPER),
            lambda batch=batch, count=count: evaluations(pipe, batch, count),
            rounds,
        )
        add("corrected run / its bare evaluations", batch, found, "<= 1.05" if batch == 16 else "")
    for batch in (1, 16, 64):
        wanted = "< 1.5" if batch <= 16 else ""
        add("plain loop, ms of processor time a step", batch, own_milliseconds(pipe, batch, 4 * rounds, None))
        add(
            "corrected loop, ms of processor time a step",
            batch,
            own_milliseconds(pipe, batch, 4 * rounds, PAPER),
            wanted,
        )
    for name, config in (("Adams", iec.AdamsConfig()), ("calibrated", made_up_plan(pipe))):
        for batch in (1, 16):
            # What it adds to a step, beside what a plain step takes: by the processor's time, which is steadier.
            plain = statistics.median(own_milliseconds(pipe, batch, 4 * rounds, None))
            added = [own - plain for own in own_milliseconds(pipe, batch, 4 * rounds, config)]
            whole = plain + milliseconds_of_an_evaluation(pipe, batch, rounds)
            percent = [100 * one / whole for one in added]
            add(f"{name}: added to a plain step, % of its time", batch, percent, "< 1" if batch == 16 else "")
    Console().print(table)


if __name__ == "__main__":
    main()
