"""Writing files so that nothing is ever half-written: a temporary name first, then a rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The suffix of a file that is still being written; one that is left behind by a killed process may be deleted.
UNFINISHED = ".part"


def require_writable(folder: str | Path) -> None:
    """Make `folder` where it is missing. Raises ValueError, in one sentence, where nothing can be written in it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"The output folder '{folder}' cannot be written: {error.strerror}.") from error


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling of `path`, then rename it over `path`."""
    path = Path(path)
    with _unfinished(path) as temporary:
        write(temporary)
        temporary.replace(path)


def create_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON unless the file is there: of several processes, what one wrote stays, whole."""
    path = Path(path)
    with _unfinished(path) as temporary:
        _write_text(temporary, json.dumps(value, indent=2) + "\n")
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        except OSError:  # a file system without links, where only renaming is left
            if not path.exists():
                temporary.replace(path)


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8, atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def write_folder_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling folder of `path`, then put it in the place of `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    old = temporary.with_name(temporary.name + "-old")
    try:
        write(temporary)
        temporary.chmod(0o755)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def folder_bytes(folder: str | Path) -> int:
    """The size of all files in `folder` together."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path`, gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
