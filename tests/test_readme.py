"""Everything in the README is run: its Python, its commands, and its links."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from iec.cli.app import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_its_python_runs_and_prints_what_it_says(code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    for expected in re.findall(r"^ *print\(.*\)  # ([\[\d].*)$", code, re.MULTILINE):
        assert expected in printed


def test_its_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    ours = [line for line in commands if line.startswith("iec ")]
    assert ours
    for line in ours:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 8
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile


def test_its_list_of_commands_is_complete():
    from iec.cli.app import app

    names = sorted(command.name for command in app.registered_commands)
    listed = re.search(r"lists the commands: (.+)\.", README).group(1)
    assert sorted(re.findall(r"`([\w-]+)`", listed)) == names


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
