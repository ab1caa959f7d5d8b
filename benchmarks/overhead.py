"""Overheads, as ratios within one run and as CPU time per step: `make bench`.

Everything is measured in turn, several times over, and the median of each ratio is printed, so that a machine that
changes its speed under way changes both parts of a ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from rich.console import Console
from rich.table import Table

import iec
from iec.models.loading import load_pipeline

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


def run(pipe, batch_size: int, config: iec.IECConfig | None = None) -> None:
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


def own_milliseconds(pipe, batch_size: int, rounds: int, config: iec.IECConfig | None) -> list[float]:
    """CPU time per step of a run less that of its evaluations; corrected, with recording and self-check on."""

    def cpu(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    count = STEPS if config is None else 2 * STEPS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread that waits for work would be counted as work
    with instant(pipe.unet):
        run(pipe, batch_size, config)
        pairs = [
            (cpu(lambda: run(pipe, batch_size, config)), cpu(lambda: evaluations(pipe, batch_size, count)))
            for _ in range(rounds)
        ]
    torch.set_num_threads(threads)
    return [1e3 * (whole - network) / STEPS for whole, network in pairs]


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
    Console().print(table)


if __name__ == "__main__":
    main()
