"""The two README commands from a bare clone in an empty directory, and the demo within its time."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_make_demo_from_a_bare_clone_ends_with_a_table_a_picture_and_a_page(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    made = subprocess.run(
        ["make", "demo"], cwd=tmp_path / "clone", env=environment, check=True, capture_output=True, text=True
    )
    assert "corrected" in made.stdout
    output = tmp_path / "clone" / "iec-demo"
    assert (output / "grid.png").stat().st_size > 10_000
    assert (output / "report.html").read_text(encoding="utf-8").count("<table") >= 1
    assert json.loads((output / "demo.json").read_text(encoding="utf-8"))["images"] >= 256
