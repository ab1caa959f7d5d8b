"""`iec evaluate`: its table, its JSON, and what it refuses."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from iec.cli.app import main
from iec.evaluation.bootstrap import bootstrap_frechet
from iec.evaluation.image_sets import TensorImages, write_images
from iec.models.features import load_feature_network, load_reference


@pytest.fixture
def iec(monkeypatch, capsys):
    """Run `iec evaluate` with these arguments: its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iec", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return run


def draw(n=12, size=32, seed=0):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


def save(folder, images):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    return save(tmp_path / "images", draw())


def figures(printed):
    return {figure["name"]: figure for figure in json.loads(printed)["figures"]}


@pytest.fixture
def real(tmp_path):
    return save(tmp_path / "real", draw(14, seed=1))


def test_the_embedded_reference_is_the_default(iec, images):
    code, printed, _ = iec(images, "--json")
    found = figures(printed)
    assert code == 0
    assert list(found) == ["FD-cifar", "KD-cifar", "IS-cifar", "precision-cifar", "recall-cifar"]
    expected = bootstrap_frechet(load_feature_network().embed(draw()), load_reference())
    assert found["FD-cifar"]["value"] == pytest.approx(expected.value, rel=1e-4)
    assert found["FD-cifar"]["low"] == pytest.approx(expected.low, rel=1e-3)
    assert "rank 11" in found["FD-cifar"]["warning"]
    assert found["KD-cifar"]["images"] == 12
    assert json.loads(printed)["reference"] == "CIFAR-10 test set"


def test_the_table_shows_intervals_and_warnings(iec, images, real):
    code, printed, _ = iec(images, "--reference", real, "--metrics", "fd")
    assert code == 0
    assert "FD-cifar" in printed
    assert "KD-cifar" in printed  # below 10,000 images it stands beside
    assert "precision" not in printed
    assert "12 images are fewer than needed for 128 features" in printed


def test_npz_and_folder_are_the_same_images(iec, images, real, tmp_path):
    write_images(tmp_path / "images.npz", TensorImages(draw()))
    write_images(tmp_path / "real.npz", TensorImages(draw(14, seed=1)))
    arguments = ["--metrics", "fd+kd+sfd+pr", "--json"]
    folders = figures(iec(images, "--reference", real, *arguments)[1])
    batches = figures(iec(tmp_path / "images.npz", "--reference", tmp_path / "real.npz", *arguments)[1])
    assert folders == batches
    assert set(folders) == {"FD-cifar", "KD-cifar", "sFD-cifar", "precision-cifar", "recall-cifar"}


def test_saved_statistics_are_a_reference(iec, images, real, tmp_path):
    code, _, _ = iec(real, "--metrics", "is", "--save-statistics", tmp_path / "real.npz")
    assert code == 0
    with np.load(tmp_path / "real.npz", allow_pickle=False) as found:
        assert {name: found[name].shape for name in found.files} == {
            "mu": (128,), "sigma": (128, 128), "mu_s": (448,), "sigma_s": (448, 448),
        }  # fmt: skip
    from_images = figures(iec(images, "--reference", real, "--metrics", "fd+sfd", "--json")[1])
    from_statistics = figures(iec(images, "--reference", tmp_path / "real.npz", "--metrics", "fd+sfd", "--json")[1])
    assert set(from_statistics) == {"FD-cifar", "sFD-cifar"}  # statistics say no KD
    for name, figure in from_statistics.items():
        assert figure["value"] == pytest.approx(from_images[name]["value"], rel=1e-6)


def test_statistics_beside_the_images_of_an_npz_take_their_place(iec, images, real, tmp_path):
    other = draw(40, seed=2)
    features = load_feature_network().embed(other).double()
    pixels = draw(14, seed=1).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "a.npz", arr_0=pixels, mu=features.mean(0).numpy(), sigma=torch.cov(features.T).numpy())
    np.savez(tmp_path / "b.npz", arr_0=pixels, mu=np.zeros(7), sigma=np.eye(7))  # of another network
    expected = figures(iec(images, "--reference", save(tmp_path / "other", other), "--json")[1])
    with_statistics = figures(iec(images, "--reference", tmp_path / "a.npz", "--json")[1])
    without = figures(iec(images, "--reference", tmp_path / "b.npz", "--json")[1])
    plain = figures(iec(images, "--reference", real, "--json")[1])
    assert with_statistics["FD-cifar"]["value"] == pytest.approx(expected["FD-cifar"]["value"], rel=1e-5)
    assert with_statistics["KD-cifar"] == without["KD-cifar"] == plain["KD-cifar"]
    assert without["FD-cifar"] == plain["FD-cifar"]


def test_the_full_precision_images_give_psnr_and_ssim(iec, images, real, tmp_path):
    other = (draw().int() + 10).clamp(0, 255).to(torch.uint8)
    full = save(tmp_path / "full", other)
    code, printed, _ = iec(images, "--full-precision", full, "--metrics", "psnr+ssim", "--json")
    found = figures(printed)
    error = (draw().double() - other.double()).square().mean().item()
    assert code == 0
    assert found["PSNR (dB)"]["value"] == pytest.approx(10 * np.log10(255**2 / error))
    assert set(found) == {"PSNR (dB)", "SSIM"}
    everything = figures(iec(images, "--full-precision", full, "--reference", real, "--json")[1])
    assert set(everything) > {"FD-cifar", "PSNR (dB)", "SSIM"}


def test_figures_do_not_depend_on_the_batches(iec, images, real):
    found, alone = (figures(iec(images, "--reference", real, "--json", "--batch-size", size)[1]) for size in (5, 1))
    for name, figure in found.items():
        assert figure["value"] == pytest.approx(alone[name]["value"], rel=1e-4)


def sentence(outcome):
    code, printed, error = outcome
    assert (code, printed) == (2, "")
    lines = error.strip().splitlines()
    assert lines[-1].startswith("iec: ")
    return lines[-1]


def test_bad_input_is_one_sentence_and_exit_code_2(iec, images, tmp_path):
    small, grey = save(tmp_path / "small", draw(size=16)), tmp_path / "grey"
    grey.mkdir()
    for i in range(12):
        Image.new("L", (32, 32), i).save(grey / f"{i}.png")
    np.savez(tmp_path / "keys.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    write_images(tmp_path / "few.npz", TensorImages(draw(9)))
    write_images(tmp_path / "thirteen.npz", TensorImages(draw(13)))
    (tmp_path / "prompts.txt").write_text("a cat\n")
    prompts = ["--prompts", tmp_path / "prompts.txt"]
    for arguments, expected in [
        ([tmp_path / "nowhere"], "There is no image folder or npz file"),
        ([small], "The CIFAR network sees 32x32 images of 3 channels, but these are 16x16 of 3: use"),
        ([grey], "these are 32x32 of 1"),
        ([images, "--reference", small], "32x32 pixels, 3 channels, but"),
        ([images, "--reference", grey], "of 32x32 pixels, 1 channel: both must have the same resolution and channels"),
        ([images, "--reference", tmp_path / "keys.npz"], "holds neither images ('arr_0') nor statistics"),
        ([images, "--reference", tmp_path / "inception.npz"], "of 2048 features, but the extractor has 128"),
        ([images, "--reference", tmp_path / "inception.npz", "--metrics", "kd"], "needs the reference's images"),
        ([tmp_path / "keys.npz"], "it lacks 'arr_0' and has 'images'"),
        ([tmp_path / "few.npz"], "holds 9 images: an interval needs at least 10"),
        ([images, "--full-precision", tmp_path / "thirteen.npz"], "holds 12 images, but"),
        ([images, "--full-precision", small], "16x16 pixels"),
        ([images, "--metrics", "fd+fid"], "Unknown metric 'fid'"),
        ([images, "--metrics", "psnr"], "needs the full-precision images"),
        ([images, "--metrics", "clip"], "needs the prompts"),
        ([images, "--metrics", "clip", *prompts, "--clip-model", tmp_path / "no"], "CLIP model"),
        ([images, "--features", "dino"], "Unknown features 'dino'"),
        ([images, "--batch-size", 0], "batch_size must be at least 1"),
        ([images, "--metrics", "psnr", "--full-precision", images, "--save-statistics", "s.npz"], "over features"),
    ]:  # fmt: skip
        assert expected in sentence(iec(*arguments)), arguments
    (images / "000003.png").write_bytes((images / "000003.png").read_bytes()[:100])
    assert "1 of 12 images" in (said := sentence(iec(images)))
    assert "'000003.png'" in said


def test_a_missing_extra_says_what_to_install(iec, images, monkeypatch):
    import iec.evaluation.metrics.extras as extras

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", missing)
    assert "pip install 'iec-diffusion[fid]'" in sentence(iec(images, "--features", "inception"))
    arguments = [images, "--metrics", "lpips", "--full-precision", images]
    assert "pip install 'iec-diffusion[lpips]'" in sentence(iec(*arguments))


def test_help_has_an_example(iec):
    code, printed, _ = iec("--help")
    assert code == 0
    assert "Example: iec evaluate" in printed
