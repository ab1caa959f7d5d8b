"""The speed of sampling into a folder and of FD-cifar, in processor time, which other processes hardly change.

python benchmarks/evaluation.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from iec.evaluation.image_sets import TensorImages
from iec.evaluation.metrics.cifar import CifarExtractor
from iec.evaluation.metrics.distances import frechet_figure
from iec.evaluation.metrics.feature_set import FeatureSet, collect
from iec.evaluation.sampling import sample_to_folder
from iec.models.features import load_reference
from iec.models.loading import load_pipeline

STEPS, BATCH, REPETITIONS = 20, 64, 5


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    pipe = load_pipeline()

    def bare() -> None:
        x = torch.randn(BATCH, 3, 32, 32)
        with torch.no_grad():
            for _ in range(STEPS):
                pipe.unet(x, torch.full((BATCH,), 500))

    def sampled() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sample_to_folder(pipe, folder, BATCH, STEPS, batch_size=BATCH)

    # In turn, since the machine may change its speed under way.
    pairs = [(processor_seconds(bare), processor_seconds(sampled)) for _ in range(REPETITIONS)]
    overhead = statistics.median(ours / theirs for theirs, ours in pairs) - 1
    print(f"sampling {BATCH} images in {STEPS} steps into a folder: {overhead:+.1%} over the bare evaluations")
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
    reference = FeatureSet.of_reference(load_reference())
    seconds = processor_seconds(
        lambda: frechet_figure("FD-cifar", collect(TensorImages(images), CifarExtractor()), reference)
    )
    print(f"FD-cifar of 10,000 images: {seconds:.1f} s")


def processor_seconds(work: Callable[[], Any]) -> float:
    """How long the processor worked."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
