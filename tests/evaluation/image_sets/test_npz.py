"""guided-diffusion's npz batches."""

import io
import zipfile

import numpy as np
import pytest
import torch

from iec.evaluation.image_sets import (
    NpzImages,
    TensorImages,
    has_images,
    open_images,
    read_statistics,
    write_images,
    write_statistics,
)


def draw(n=7, height=4, width=5, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (n, height, width, channels))
    return values.astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_of_numpy_are_read_in_order(tmp_path, save, size):
    save(tmp_path / "a.npz", draw())  # numpy itself calls it arr_0
    images = open_images(tmp_path / "a.npz")
    assert (len(images), images.shape) == (7, (3, 4, 5))
    batches = list(images.batches(size))
    assert max(map(len, batches)) == min(size, 7)
    assert np.array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), draw())


def test_written_images_are_what_numpy_reads(tmp_path):
    images = torch.from_numpy(draw()).permute(0, 3, 1, 2)
    write_images(tmp_path / "a.npz", TensorImages(images), batch_size=3)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == ["arr_0"]
        assert np.array_equal(found["arr_0"], draw())
    assert torch.equal(torch.cat(list(NpzImages(tmp_path / "a.npz").batches(2))), images)


def test_statistics_are_written_and_read(tmp_path):
    statistics = {"mu": torch.rand(3), "sigma": torch.eye(3), "mu_s": torch.rand(2), "sigma_s": torch.eye(2)}
    write_statistics(tmp_path / "a.npz", statistics)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert set(found.files) == set(statistics)
        assert np.array_equal(found["mu"], statistics["mu"].double().numpy())
    again = read_statistics(tmp_path / "a.npz")
    assert all(torch.equal(again[name], value.double()) for name, value in statistics.items())
    assert not has_images(tmp_path / "a.npz")
    write_statistics(tmp_path / "b.npz", {"mu": torch.rand(3), "sigma": torch.eye(3)})
    assert set(read_statistics(tmp_path / "b.npz")) == {"mu", "sigma"}
    with pytest.raises(ValueError, match="Statistics are mu, sigma"):
        write_statistics(tmp_path / "c.npz", {"mu": torch.rand(3)})


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": draw()}, "it lacks 'arr_0' and has 'images'"),
        ({"arr_0": draw().astype(np.float32)}, r"must be uint8 \[N, H, W, C\], but is float32 \[7, 4, 5, 3\]"),
        ({"arr_0": draw()[0]}, r"must be uint8 \[N, H, W, C\], but is uint8 \[4, 5, 3\]"),
        ({"arr_0": draw(0)}, r"\[0, 4, 5, 3\]"),
        ({"arr_0": np.asfortranarray(draw())}, "must be uint8"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "but is object"),
    ],
)
def test_what_are_no_images_is_one_sentence(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        NpzImages(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"mean": np.zeros(3)}, "holds neither images .* nor statistics .*, but 'mean'"),
        ({"mu": np.zeros(3)}, "neither images"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"must be floating point \[d\] and \[d, d\]"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "must be floating point"),
        ({"mu": np.zeros(3, dtype=int), "sigma": np.eye(3)}, "must be floating point"),
        ({"mu": np.array([None] * 3), "sigma": np.eye(3)}, "cannot be read: Object arrays"),
    ],
)
def test_what_are_no_statistics_is_one_sentence(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        read_statistics(tmp_path / "a.npz")


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("unpickled",))

    np.savez(tmp_path / "a.npz", arr_0=np.array([Bomb()], dtype=object), mu=np.array([Bomb()]), sigma=np.eye(1))
    for read in (NpzImages, read_statistics):
        with pytest.raises(ValueError, match=r"object|Object"):
            read(tmp_path / "a.npz")


def test_a_truncated_or_foreign_file_is_one_sentence(tmp_path):
    np.savez(tmp_path / "a.npz", draw())
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no npz")
    for name in ("cut.npz", "text.npz"):
        with pytest.raises(ValueError, match="is no npz file, or is truncated"):
            open_images(tmp_path / name)


@pytest.mark.parametrize("what", ["too short", "altered"])
def test_images_that_end_early_or_were_altered_are_refused_while_they_are_read(tmp_path, what):
    pixels, content = draw(50, 32, 32), io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": pixels.shape}
    np.lib.format.write_array_header_1_0(content, header)
    content.write(pixels[: 40 if what == "too short" else 50].tobytes())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content.getvalue())
    if what == "altered":
        whole = bytearray((tmp_path / "a.npz").read_bytes())
        whole[len(whole) // 2] ^= 255
        (tmp_path / "a.npz").write_bytes(bytes(whole))
    images = open_images(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="truncated"):
        list(images.batches(10))
