"""The method room stands alone: torch, the standard library, and itself."""

import ast
import sys
from pathlib import Path

import iec.method


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield node.module


def test_the_method_imports_only_torch_and_the_standard_library():
    (folder,) = iec.method.__path__
    files = list(Path(folder).rglob("*.py"))
    assert len(files) >= 10
    for path in files:
        for name in imported(path):
            root = name.split(".")[0]
            allowed = root == "torch" or root in sys.stdlib_module_names or name.split(".")[:2] == ["iec", "method"]
            assert allowed, f"{path.name} imports {name}"
