import pytest

from iec.storage.files import write_atomically, write_folder_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    write_atomically(file, lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    write_folder_atomically(folder, lambda path: (path / "one").write_text("1"))
    write_folder_atomically(folder, lambda path: (path / "two").write_text("2"))
    assert [file.name for file in folder.iterdir()] == ["two"]

    def fail(path):
        (path / "three").write_text("3")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder_atomically(folder, fail)
    assert [file.name for file in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]
