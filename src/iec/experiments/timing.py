"""What corrections cost in time: the rows of one system by turns, so that whatever else the machine does meets all."""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline

from iec.evaluation.generate import generate
from iec.experiments.measuring import Measurements
from iec.experiments.plans import digest
from iec.experiments.settings import Setting
from iec.pipelines.enabling import Correction
from iec.storage.files import write_json

IMAGES, ROUNDS = 8, 3


def measured_overheads(measurements: Measurements, settings: Sequence[Setting], spacing: str) -> tuple[float, ...]:
    """By how much more time each setting takes than the first, in percent, the median of three rounds; kept.

    settings: of one technique and sampler. A CPU is timed in the processor time of one thread, which other processes
    hardly change.
    """
    first = settings[0]
    if any((one.technique, one.sampler) != (first.technique, first.sampler) for one in settings):
        raise ValueError("Only corrections of one system can be timed by turns.")
    pipe = measurements.pipeline(first, spacing)
    rows = [measurements.settings(pipe, setting, IMAGES, 0, spacing) for setting in settings]
    path = measurements.folder / "timings" / f"{digest({'rows': rows, 'rounds': ROUNDS})}.json"
    if not path.is_file():
        given = [(setting, measurements.plans.correction(pipe, setting)) for setting in settings]
        with measurements.plans.applied(pipe, first), _one_thread():
            rounds = [[_seconds(measurements, pipe, *one) for one in given] for _ in range(ROUNDS)]
        found = [statistics.median(100 * (own[i] / own[0] - 1) for own in rounds) for i in range(len(settings))]
        write_json(path, {"settings": [one.label for one in settings], "seconds": rounds, "overhead_percent": found})
    return tuple(json.loads(path.read_text(encoding="utf-8"))["overhead_percent"])


def _seconds(
    measurements: Measurements, pipe: DiffusionPipeline, setting: Setting, correction: Correction | None
) -> float:
    measurements.on_row(setting, 0, False)
    clock = time.process_time if pipe.device.type == "cpu" else time.perf_counter
    began = clock()
    for _ in generate(pipe, IMAGES, setting.num_steps, 0, IMAGES, correction, inputs=measurements.inputs):
        pass
    return clock() - began


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
