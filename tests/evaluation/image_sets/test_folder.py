"""Folders of images, and opening a set by its path."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from iec.evaluation.image_sets import TensorImages, open_images, require_pairs, require_same_shape


def save(path, seed=0, size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
    Image.fromarray(pixels.squeeze(), mode if mode != "P" else None).save(path, **options)
    return pixels


@pytest.mark.parametrize("size", [1, 2, 100])
def test_images_come_sorted_by_path_from_all_folders(tmp_path, size):
    expected = [save(tmp_path / name, i) for i, name in enumerate(["a/1.png", "a/2.PNG", "b/0.png"])]
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".3.png").write_text("half an image")
    images = open_images(tmp_path)
    assert (len(images), images.shape) == (3, (3, 4, 6))
    found = torch.cat(list(images.batches(size)))
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_jpeg_grey_and_palette_images_are_read(tmp_path):
    (tmp_path / "jpeg").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "jpeg" / "a.jpg")
    Image.new("RGB", (6, 4), "blue").quantize(4).save(tmp_path / "jpeg" / "b.png")
    colours = torch.cat(list(open_images(tmp_path / "jpeg").batches(2))).float().mean((2, 3))
    assert (colours - torch.tensor([[255.0, 0, 0], [0, 0, 255.0]])).abs().max() < 3
    save(tmp_path / "grey" / "a.png", mode="L")
    assert open_images(tmp_path / "grey").shape == (1, 4, 6)


def test_corrupt_and_truncated_images_are_named_and_counted(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", i, size=(60, 40))
    save(tmp_path / "j.jpg", size=(60, 40))
    for name in ("1.png", "5.png", "j.jpg"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "7.png").write_bytes(b"")
    (tmp_path / "8.png").write_text("no image")
    with pytest.raises(ValueError, match=r"5 of 10 images .* '1.png', '5.png', '7.png' and 2 more"):
        open_images(tmp_path)


def test_images_of_several_shapes_are_named_and_counted(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", i)
    save(tmp_path / "4.png", size=(6, 6))
    save(tmp_path / "5.png", mode="L")
    with pytest.raises(ValueError, match=r"2 of 6 images .* another resolution or channel count .*: '4.png', '5.png'"):
        open_images(tmp_path)


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 of 1 images"):
        open_images(tmp_path)


def test_a_sampling_run_that_is_not_finished_is_refused(tmp_path):
    save(tmp_path / "000000.png")
    record = {"generator_seeds": [0, 1, 2, 3, 4], "complete": False}
    (tmp_path / "sampling.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="does not hold all of its 5 images yet"):
        open_images(tmp_path)
    (tmp_path / "sampling.json").write_text(json.dumps({**record, "complete": True}))
    assert open_images(tmp_path).seeds == [0, 1, 2, 3, 4]
    (tmp_path / "sampling.json").write_text("[]")
    with pytest.raises(ValueError, match="is no record of a sampling run"):
        open_images(tmp_path)


def test_what_holds_no_images_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("")
    for path, sentence in [
        (tmp_path, "holds no images"),
        (tmp_path / "nowhere", "There is no image folder or npz file"),
        (tmp_path / "a.txt", "is no set of images"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            open_images(path)


def test_sets_of_other_shapes_do_not_compare():
    grey = TensorImages(torch.zeros(2, 1, 4, 6, dtype=torch.uint8), "grey")
    with pytest.raises(ValueError, match="'grey' holds images of 6x4 pixels, 1 channel, but 'c' of 6x4 pixels, 3"):
        require_same_shape(grey, TensorImages(torch.zeros(2, 3, 4, 6, dtype=torch.uint8), "c"))
    with pytest.raises(ValueError, match="must be uint8"):
        TensorImages(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(("first", "second", "refused"), [([0, 1], [0, 1], False), ([0, 1], [5, 6], True)])
def test_runs_of_other_seeds_are_no_pairs(tmp_path, first, second, refused):
    for folder, seeds in (("a", first), ("b", second), ("unknown", None)):
        for i in range(2):
            save(tmp_path / folder / f"{i}.png", i)
        if seeds is not None:
            (tmp_path / folder / "sampling.json").write_text(json.dumps({"generator_seeds": seeds}))
    a, b, unknown = (open_images(tmp_path / name) for name in ("a", "b", "unknown"))
    require_pairs(a, unknown)
    if refused:
        with pytest.raises(ValueError, match="were sampled from other seeds"):
            require_pairs(a, b)
    else:
        require_pairs(a, b)
