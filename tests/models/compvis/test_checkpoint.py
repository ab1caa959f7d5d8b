import pickle

import pytest
import torch
from safetensors.torch import save_file

from iec.models.compvis.checkpoint import average_named, read_checkpoint, split_checkpoint

from .settings import tiny_checkpoint, tiny_unet


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_refused_by_name_or_content_and_never_loaded(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemError('it was loaded')",))

    for write in (lambda path: path.write_bytes(pickle.dumps(Bomb())), lambda path: torch.save({"a": Bomb()}, path)):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=r"is a pickled checkpoint.*docs/paper-models\.md\.$"):
            read_checkpoint(tmp_path / name)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        read_checkpoint(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("some text that is long enough for a header")
    with pytest.raises(ValueError, match="is no safetensors file, or is damaged"):
        read_checkpoint(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(100)}, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(tmp_path / "cut.safetensors")


def test_a_checkpoint_comes_apart_without_a_remainder():
    tensors = tiny_checkpoint("churches", average=True)
    parts = split_checkpoint(tensors)
    assert parts.whole
    assert parts.unet.keys() == tiny_unet("churches").state_dict().keys()
    assert len(parts.average) == len(parts.unet)
    assert parts.condition == {}
    assert parts.scale == 0.25
    counted = len(parts.unet) + len(parts.average) + len(parts.first_stage)
    assert counted == len(tensors) - len({"scale_factor", "betas", "alphas_cumprod", "sqrt_alphas_cumprod"}) - 2


def test_a_tensor_that_belongs_to_nothing_is_named():
    with pytest.raises(ValueError, match=r"'discriminator\.weight' belongs to no part"):
        split_checkpoint({**tiny_checkpoint("bedrooms"), "discriminator.weight": torch.zeros(1)})


def test_a_unet_alone_needs_no_prefix():
    weights = tiny_unet("bedrooms").state_dict()
    parts = split_checkpoint(weights)
    assert not parts.whole
    assert parts.unet == weights


@pytest.mark.parametrize("name", ["churches", "bedrooms", "imagenet"])
def test_the_flat_names_of_an_average_are_told_apart(name):
    weights = tiny_unet(name).state_dict()
    flat = {f"diffusion_model{key.replace('.', '')}": torch.tensor(i) for i, key in enumerate(weights)}
    assert len(flat) == len(weights)
    assert average_named(flat, weights) == {key: torch.tensor(i) for i, key in enumerate(weights)}
    assert "stray" in average_named({"stray": torch.zeros(1)}, weights)
