"""The examples of docs/python.md print what the page shows, and the notebook has the same text, code and outputs."""

import difflib
import json

import pytest
from tutorial import NOTEBOOK, executed, notebook, parts


def codes(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_the_last_section_of_the_page():
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8")) == notebook(parts()[1])


def test_the_examples_of_the_manual_print_what_it_shows():
    manual = parts()[0]
    found, namespaces = executed(manual)
    assert len(namespaces) >= 4
    assert found == manual


def test_the_notebook_finds_its_fault_and_the_repair():
    pytest.importorskip("torch", reason="the tutorial needs torch")
    reports = []
    tutorial = parts()[1]
    found, namespaces = executed(tutorial)
    assert found == tutorial
    for namespace in namespaces:
        report = namespace.get("report")
        if report is not None and report not in reports:
            reports.append(report)
    by_output, by_stages, repaired = reports
    failures = {failure["case"] for failure in by_output.failures}
    assert failures and {failure["stage"] for failure in by_output.failures} == {"output"}
    assert {failure["case"] for failure in by_stages.failures} >= failures
    # Each at the first recorded consequence of the fault: the scores of the second block, or its mask.
    cases = {case.name: case for case in namespaces[-1]["cases"]}
    for failure in by_stages.failures:
        case = cases[failure["case"]]
        assert failure["stage"] == ("score" if "trace.score" in case.expected else "mask")
        first = case.settings["block_size"]
        assert failure["place"].startswith(f"columns {first}..") and failure["place"].endswith("block 1")
    assert set(repaired.verdicts.values()) == {"pass"} and len(repaired.verdicts) == len(cases) > len(failures)


def test_the_repair_is_one_line():
    broken, mended = [code for code in codes(notebook(parts()[1])["cells"]) if code.startswith("def prune")]
    mended = mended.split("\n\n\n")[0]
    changed = [line for line in difflib.ndiff(broken.splitlines(), mended.splitlines()) if line[0] in "-+"]
    assert [line[0] for line in changed] == ["-", "+"]
