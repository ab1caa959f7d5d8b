"""What caching and simulated quantization cost, as ratios to the float model within one run: part of `make bench`.

Simulated arithmetic is slower than float: it puts every activation on a grid and then computes in float all the same.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from overhead import STEPS, ratios, run
from rich.console import Console
from rich.table import Table

from iec.efficient import DeepCacheConfig, QuantizationConfig, apply, calibrate, remove
from iec.efficient.applying import Technique
from iec.models.loading import load_pipeline


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    float_pipe, pipe = load_pipeline(), load_pipeline()
    plan = calibrate(pipe, QuantizationConfig(), STEPS, samples=16)
    packed = replace(plan, config=replace(plan.config, storage="packed"))
    techniques: dict[str, Technique] = {
        "DeepCache N=5": DeepCacheConfig(5),
        "W8A8 simulated": plan,
        "W8A8 simulated, packed weights": packed,
    }
    table = Table(title=f"Time over the float model's, T={STEPS}, float32, {torch.get_num_threads()} threads")
    for column in ("what", "batch", "median", "min", "max"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, technique in techniques.items():
        apply(pipe, technique)
        for batch in (1, 16, 64):
            found = ratios(lambda b=batch: run(pipe, b), lambda b=batch: run(float_pipe, b), rounds)
            table.add_row(name, str(batch), *(f"{f(found):.3f}" for f in (statistics.median, min, max)))
        remove(pipe)
    Console().print(table)


if __name__ == "__main__":
    main()
