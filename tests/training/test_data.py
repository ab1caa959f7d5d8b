import io

import numpy as np
import pytest
from PIL import Image

from iec.training.data import load_images


def picture(seed, size=(32, 32)):
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG")
    return buffer.getvalue()


def write_npz(path, parts, **more):
    offset = np.cumsum([0, *map(len, parts)])
    np.savez(path, jpeg=np.frombuffer(b"".join(parts), np.uint8), offset=offset, **more)


def test_an_npz_of_jpegs_is_decoded_in_order_with_its_labels(tmp_path):
    parts = [jpeg(picture(seed)) for seed in range(3)]
    write_npz(tmp_path / "data.npz", parts, label=np.array([2, 0, 1], np.uint8))
    data = load_images(tmp_path / "data.npz")
    for found, part in zip(data.images, parts, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(part)))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert data.labels.tolist() == [2, 0, 1]
    assert len(data) == 3


def test_a_folder_is_read_sorted_and_brought_to_size(tmp_path):
    (tmp_path / "b").mkdir()
    picture(0).save(tmp_path / "b" / "1.png")
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste(Image.new("RGB", (30, 30), "blue"), (30, 0))
    wide.save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = load_images(tmp_path)
    assert tuple(data.images.shape) == (2, 3, 32, 32)
    assert data.images[0].float().mean((1, 2)).tolist() == [0, 0, 255]  # the centred square
    assert np.array_equal(data.images[1].permute(1, 2, 0).numpy(), np.asarray(picture(0)))
    assert data.labels is None


def test_unreadable_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no training data at"):
        load_images(tmp_path / "nowhere.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        load_images(tmp_path / "empty")
    np.savez(tmp_path / "keys.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks \['jpeg', 'offset'\]"):
        load_images(tmp_path / "keys.npz")
    write_npz(tmp_path / "corrupt.npz", [jpeg(picture(0)), b"nonsense"])
    with pytest.raises(ValueError, match="Cannot read image 1 of"):
        load_images(tmp_path / "corrupt.npz")
