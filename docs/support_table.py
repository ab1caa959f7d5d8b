"""Writes the support table of docs/pipelines.md from the results of the tests: `make support`.

A test names what it has checked with pytest's `record_property`; rows and cells are what the tests recorded.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pipelines.md"
BEGIN, END = "<!-- support: begin (make support) -->", "<!-- support: end -->"

#: Per kind of row: its title, and per column the heading and the tests (and the policy) whose results it shows.
_EXACT = "corrected exactly"
_CACHED = ["equals_the_loop", "relaxation_0"]
TABLES = {
    "pipeline": (
        "Pipelines",
        {_EXACT: ["corrected_pipeline_equals", "modular_pipeline_equals", "4_channels_equals"]},
    ),
    "scheduler": (
        "Schedulers",
        {
            _EXACT: ["corrected_run_equals"],
            "x = Phi(e)": ["state_is_the_step_of_the_relaxed_output"],
            "noise from a generator per image": ["depends_on_its_own_generator"],
        },
    ),
    "cache": (
        "Feature caches",
        {"bypass": _CACHED, "reuse": _CACHED, "refresh": [*_CACHED, "refreshing_pass"]},
    ),
    "quantizer": ("Quantized by other libraries", {_EXACT: ["quantized_network"]}),
    "preparation": (
        "Compiled, offloaded, cast",
        {"corrected as without it": ["prepared_pipeline", "compiled_network_is"]},
    ),
}
PREFERRED = {"failed": "NO", "passed": "yes", "skipped": "not run"}


@dataclass(frozen=True)
class Result:
    """One test: its name, what it recorded, and how it ended."""

    name: str
    properties: dict[str, str]
    outcome: str


def results_of(report: Path) -> list[Result]:
    """The tests of a JUnit report that recorded something."""
    results = []
    for case in ElementTree.parse(report).iter("testcase"):
        properties = {entry.get("name", ""): entry.get("value", "") for entry in case.iter("property")}
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        if properties:  # of the others, none is shown
            results.append(Result(case.get("name", ""), properties, outcome))
    return results


def tables(results: list[Result]) -> str:
    """The tables in Markdown, rows in the order of the tests."""
    parts = []
    for kind, (title, columns) in TABLES.items():
        rows: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        schedulers: dict[str, str] = {}
        for result in (result for result in results if kind in result.properties):
            name = result.properties[kind]
            schedulers[name] = result.properties.get("with", "")
            for heading, tests in columns.items():
                # The columns of a cache are its policies.
                if any(test in result.name for test in tests) and result.properties.get("policy", heading) == heading:
                    rows[name][heading].add(result.outcome)
        tested_with = any(schedulers.values())
        head = [kind, *(["tested with"] if tested_with else []), *columns]
        lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, cells in rows.items():
            shown = [_cell(cells[heading]) for heading in columns]
            lines.append("| " + " | ".join([name, *([schedulers[name]] if tested_with else []), *shown]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(outcomes: set[str]) -> str:
    return next((word for outcome, word in PREFERRED.items() if outcome in outcomes), "")


def main() -> None:
    """Run the tests of the pipelines (or read a report of theirs) and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, nargs="*", help="JUnit (xunit1) reports, instead of running the tests")
    reports = parser.parse_args().reports
    with tempfile.TemporaryDirectory() as folder:
        if not reports:
            reports = [Path(folder) / "report.xml"]
            command = [sys.executable, "-m", "pytest", "tests/pipelines", "-o", "junit_family=xunit1"]
            # Failures are shown in the table.
            subprocess.run([*command, f"--junitxml={reports[0]}"], cwd=ROOT, check=False)
        written = tables([result for report in reports for result in results_of(report)])
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}")


if __name__ == "__main__":
    main()
