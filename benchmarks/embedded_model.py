"""How good the embedded model is: held-out loss per noise level, FD-cifar and KD-cifar beside real images, a grid.

python benchmarks/embedded_model.py cifar10_train.npz cifar10_test.npz -o runs/report
"""

import argparse
import json
import time
from pathlib import Path

import torch

from iec.evaluation.bootstrap import Estimate, bootstrap_frechet, bootstrap_kernel_distance
from iec.evaluation.cost import evaluation_cost
from iec.evaluation.kernel import kernel_terms
from iec.evaluation.network_call import made_up_call
from iec.experiments.rows import generate_in_parallel
from iec.experiments.settings import Setting
from iec.models.features import load_feature_network, load_reference
from iec.models.loading import load_pipeline
from iec.reports.grid import picture_grid, save_png
from iec.storage.files import write_json
from iec.training.data import load_images
from iec.training.denoiser import held_out_loss


def main() -> None:
    """Sample, measure, and write report.json and grid.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/report"))
    parser.add_argument("-n", "--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()

    network, reference = load_feature_network(), load_reference()

    def distances(images: torch.Tensor) -> dict[str, dict[str, float]]:
        features = torch.cat([network.embed(batch) for batch in images.split(500)])
        terms = kernel_terms(features, reference.features)
        return {
            "fd_cifar": interval(bootstrap_frechet(features, reference)),
            "kd_cifar": interval(bootstrap_kernel_distance(terms)),
        }

    pipe = load_pipeline(dtype=getattr(torch, arguments.dtype))
    began = time.perf_counter()
    batches = generate_in_parallel(pipe, arguments.images, Setting(arguments.steps), 0, 32, lambda images: None)
    seconds = time.perf_counter() - began
    samples = torch.cat([batch.images for batch in batches])
    train = load_images(arguments.train).images  # may be sorted by class
    real = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: arguments.images]]
    exact = load_pipeline().unet
    report = {
        "images": arguments.images,
        "num_steps": arguments.steps,
        "sampling_dtype": arguments.dtype,
        "seconds": round(seconds, 1),
        "multiply_adds_per_evaluation": evaluation_cost(exact, made_up_call(exact)).full,
        "parameters": sum(parameter.numel() for parameter in exact.parameters()),
        "samples": distances(samples),
        "real_training_images": distances(real),
        "held_out_loss": [
            {"timesteps": list(level), "loss": round(loss, 5)}
            for level, loss in held_out_loss(exact, load_images(arguments.test))
        ],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "report.json", report)
    rows = [(f"{12 * i} to {12 * i + 11}", samples[12 * i : 12 * i + 12]) for i in range(min(8, len(samples) // 12))]
    save_png(picture_grid(rows, scale=3, label_width=90), arguments.output / "grid.png")
    print(json.dumps(report, indent=2))


def interval(estimate: Estimate) -> dict[str, float]:
    """An estimate as JSON values."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


if __name__ == "__main__":
    main()
