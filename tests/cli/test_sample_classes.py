"""`iec sample --classes`, for diffusers' DiT and for our LDM-4-G."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DConditionModel
from PIL import Image
from tiny_models import seeded

import iec
from iec.cli.app import main
from iec.evaluation.class_labels import random_class
from iec.models.class_embedder import ClassEmbedder
from iec.models.latent import ClassLatentPipeline
from iec.runtime import SpacedDDIMScheduler


def vae():
    return seeded(AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2, sample_size=8))


def dit():
    transformer = DiTTransformer2DModel(2, 4, in_channels=4, out_channels=8, num_layers=1, sample_size=8)
    return DiTPipeline(seeded(transformer), vae(), DDIMScheduler())


def ldm():
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    widths = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 2}
    unet = seeded(UNet2DConditionModel(sample_size=8, cross_attention_dim=6, **blocks, **widths))
    scheduler = SpacedDDIMScheduler(spacing="uniform")
    return ClassLatentPipeline(vae(), seeded(ClassEmbedder(13, 6)), unet, scheduler)


PIPELINES = {"DiTPipeline": dit, "ClassLatentPipeline": ldm}


@pytest.fixture(params=PIPELINES)
def pipe(request, tmp_path):
    made = PIPELINES[request.param]()
    made.save_pretrained(tmp_path / "model")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def sample(monkeypatch, capsys, tmp_path):
    """Sample five images with these options: the images, and the classes in the record; or the last sentence."""

    def run(*options, images=5):
        out = tmp_path / "out"
        arguments = [tmp_path / "model", "-n", images, "--steps", 2, "--batch-size", 2, "-o", out, *options]
        monkeypatch.setattr(sys, "argv", ["iec", "sample", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        error = capsys.readouterr().err
        if stopped.value.code:
            assert stopped.value.code == 2
            return error.strip().splitlines()[-1], out.exists()
        found = [np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))]
        return np.stack(found), json.loads((out / "sampling.json").read_text())["settings"]["class_labels"]

    return run


def expected(pipe, labels):
    """The images of these classes, each in a call of its own without `iec`'s loop over batches."""
    found = []
    with torch.no_grad():
        for i, label in enumerate(labels):
            generators = [iec.image_generator(0, i)]
            image = pipe(class_labels=[label], generator=generators, num_inference_steps=2, output_type="np").images[0]
            found.append((255 * image).round())
    return np.stack(found)


def close(found, wanted):
    """Equal but for rounding between batch sizes."""
    return found.shape == wanted.shape and np.abs(found - wanted).max() <= 1


def test_classes_are_taken_in_turn(pipe, sample):
    images, record = sample("--classes", "1+11")
    assert record == [1, 11]
    assert close(images, expected(pipe, [1, 11, 1, 11, 1]))
    assert not close(images, expected(pipe, [1, 1, 1, 1, 1]))


def test_random_classes_depend_on_seed_and_image_and_a_run_can_be_extended(pipe, sample):
    count = 1000 if isinstance(pipe, DiTPipeline) else 12
    first, record = sample("--classes", "random", images=3)
    assert record == f"random of {count}, seed 0"
    images, _ = sample("--classes", "random")
    assert np.array_equal(images[:3], first)
    assert close(images, expected(pipe, [random_class(count, 0, i) for i in range(5)]))


def test_classes_that_do_not_fit_are_refused_before_sampling(pipe, sample):
    last = 999 if isinstance(pipe, DiTPipeline) else 11
    assert sample("--classes", last + 1) == (
        f"iec: The classes of this model are 0 to {last}, but {last + 1} was asked for.", False
    )  # fmt: skip
    sentence, made = sample()
    assert sentence.startswith(f"iec: {type(pipe).__name__} needs classes, which were not given")
    assert not made


def test_a_quantized_model_of_classes_is_calibrated_over_the_same_choice(pipe, sample):
    images, record = sample("--classes", "random", "--quantize", "w8a8", images=2)
    assert len(images) == 2
    assert record.startswith("random of")
