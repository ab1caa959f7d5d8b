"""The support table: made of what tests recorded, and up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

from .schedulers import SCHEDULERS
from .test_every_pipeline import CASES
from .test_modular import GUIDERS
from .test_offload import PREPARATIONS
from .test_quantizers import QUANTIZERS

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
specification = importlib.util.spec_from_file_location("support_table", PAGE.with_name("support_table.py"))
support_table = importlib.util.module_from_spec(specification)
specification.loader.exec_module(support_table)

REPORT = """<testsuites><testsuite>
<testcase name="test_a_corrected_pipeline_equals_it[A]">
  <properties><property name="pipeline" value="A"/><property name="with" value="DDIM"/></properties></testcase>
<testcase name="test_a_corrected_pipeline_equals_it[B]">
  <properties><property name="pipeline" value="B"/><property name="with" value="DDIM"/></properties><failure/>
</testcase>
<testcase name="test_a_corrected_cached_run_equals_the_loop[x]">
  <properties><property name="cache" value="C"/><property name="policy" value="reuse"/></properties></testcase>
<testcase name="test_relaxation_0_keeps_it[x]">
  <properties><property name="cache" value="C"/><property name="policy" value="reuse"/></properties><failure/>
</testcase>
<testcase name="test_a_corrected_cached_run_equals_the_loop[y]">
  <properties><property name="cache" value="C"/><property name="policy" value="bypass"/></properties></testcase>
<testcase name="test_a_quantized_network_is_corrected[D]">
  <properties><property name="quantizer" value="D"/></properties><skipped/></testcase>
<testcase name="test_something_else"/>
</testsuite></testsuites>"""


def rows(text, title):
    """The cells of the table under a title, without its head."""
    part = re.search(rf"### {title}\n\n(.*?)\n(\n|$)", text + "\n", re.DOTALL).group(1)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()[2:]]


def test_a_row_shows_what_the_tests_recorded(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    written = support_table.tables(support_table.results_of(report))
    assert rows(written, "Pipelines") == [["A", "DDIM", "yes"], ["B", "DDIM", "NO"]]
    assert rows(written, "Feature caches") == [["C", "yes", "NO", ""]]
    assert rows(written, "Quantized by other libraries") == [["D", "not run"]]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Pipelines", CASES),
        ("Pipelines", [f"WanModularPipeline, {name} guider" for name in GUIDERS]),
        ("Schedulers", SCHEDULERS),
        ("Quantized by other libraries", QUANTIZERS),
        ("Compiled, offloaded, cast", PREPARATIONS),
    ],
)
def test_the_page_shows_every_tested_case(title, names):
    """After a change of the tests: `make support`."""
    shown = rows(PAGE.read_text(), title)
    assert set(names) <= {row[0] for row in shown}
    assert all(cell in ("yes", "") for row in shown for cell in row[2 if title == "Pipelines" else 1 :])
