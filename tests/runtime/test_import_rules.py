"""The house: arrows go one way, and `import iec` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import iec

# Which rooms each room may import (design.md); its own files are always allowed.
BELOW = {
    "method": set(),
    "storage": set(),  # files and fingerprints, for every room above the method
    "runtime": {"method", "storage"},
    "pipelines": {"runtime", "method", "storage"},
    "efficient": {"runtime", "method", "storage"},
    "models": {"runtime", "method", "storage"},
}
FLOOR = {"evaluation", "training", "reports"}
for room in FLOOR:
    BELOW[room] = {"pipelines", "efficient", "models", "runtime", "method", "storage"}
BELOW["fitting"] = {"pipelines", "efficient", "models", "runtime", "method", "storage"}
BELOW["analysis"] = BELOW["evaluation"] | FLOOR | {"fitting"}
BELOW["tuning"] = BELOW["analysis"] | {"analysis"}
BELOW["experiments"] = BELOW["tuning"] | {"tuning"}
BELOW["cli"] = BELOW["experiments"] | {"experiments"}

ROOT = Path(iec.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path):
    own = [name.split(".") for name in imports(path)]
    return {parts[1] for parts in own if parts[0] == "iec" and len(parts) > 1 and parts[1] in BELOW}


def test_every_room_is_known():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} <= set(BELOW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_rooms_below_it(path):
    room = path.relative_to(ROOT).parts[0]
    assert rooms_imported(path) <= BELOW[room] | {room}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import iec", ["torch", "diffusers", "transformers", "numpy"]),
        ("import iec; iec.IECConfig; iec.sample; iec.Summary", ["diffusers", "transformers", "iec.runtime"]),
        ("import iec; iec.enable", ["iec.efficient", "iec.models"]),
    ],
)
def test_nothing_is_loaded_before_it_is_used(statement, absent):
    check = f"{statement}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_public_names_are_listed_and_found():
    assert set(iec.__all__) <= set(dir(iec))
    for name in iec.__all__:
        assert getattr(iec, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        iec.no_such_name  # noqa: B018
