import json
import sys
from pathlib import Path

import pytest
import torch
from models.compvis.settings import NAMES, tiny_checkpoint, tiny_paper_model
from safetensors.torch import save_file

from iec.cli.app import main
from iec.models import paper


@pytest.fixture
def iec(monkeypatch, capsys):
    """Run `iec` with these arguments, the paper's models being tiny: exit code, standard output, last line of error."""
    models = {**paper.paper_models(), **{name: tiny_paper_model(name) for name in NAMES}}
    monkeypatch.setattr(paper, "paper_models", lambda: models)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err.strip().splitlines()[-1:]

    return run


def test_a_checkpoint_becomes_a_folder_that_sample_takes(iec, tmp_path):
    save_file(tiny_checkpoint("churches", average=True), tmp_path / "weights.safetensors")
    out = tmp_path / "churches"
    code, printed, _ = iec("convert", "--unet", tmp_path / "weights.safetensors", "--model", "churches", "-o", out)
    assert code == 0
    assert f"LDM-8 on LSUN-Churches 256x256 is in {out}" in printed
    code, _, _ = iec("sample", out, "-n", 1, "--steps", 2, "--batch-size", 1, "-o", tmp_path / "images")
    assert code == 0
    assert (tmp_path / "images" / "000000.png").exists()


def test_the_result_as_json_and_the_folder_by_default(iec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(tiny_checkpoint("imagenet"), "weights.safetensors")
    code, printed, _ = iec("convert", "--unet", "weights.safetensors", "--model", "imagenet", "--json")
    assert code == 0
    result = json.loads(printed)
    assert result["folder"] == "iec-imagenet"
    assert result["scaling_factor"] == 1.0
    assert (tmp_path / "iec-imagenet" / "class_embedder" / "config.json").exists()


def test_bad_input_exits_with_2_and_one_sentence(iec, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    save_file({"input_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for unet, model, options, sentence in [
        ("model.ckpt", "churches", (), "is a pickled checkpoint"),
        ("nowhere.safetensors", "churches", (), "There is no file"),
        ("other.safetensors", "celeba", (), "The paper has no model 'celeba'"),
        ("other.safetensors", "coco", (), "needs no conversion"),
        ("other.safetensors", "bedrooms", (), "holds no autoencoder"),
        ("other.safetensors", "bedrooms", ("--weights", "best"), "Unknown weights 'best'"),
        ("other.safetensors", "bedrooms", ("--autoencoder", tmp_path / "model.ckpt"), "is a pickled checkpoint"),
    ]:
        arguments = ("--unet", tmp_path / unet, "--model", model, "-o", tmp_path / "out", *options)
        code, printed, error = iec("convert", *arguments)
        assert (code, printed) == (2, "")
        assert sentence in error[0]
        assert not (tmp_path / "out").exists()


def test_the_lines_of_the_documents_make_a_checkpoint_that_it_reads(iec, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "paper-models.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    tensors = tiny_checkpoint("bedrooms")
    shared = {**tensors, "lvlb_weights": tensors["betas"]}  # safetensors refuses tensors that share their storage
    torch.save({"state_dict": shared, "epoch": 3}, "model.ckpt")
    exec(compile(code, "paper-models.md", "exec"), {})
    arguments = ("--model", "bedrooms", "--weights", "raw", "-o", tmp_path / "out")
    assert iec("convert", "--unet", "model.safetensors", *arguments)[0] == 0
