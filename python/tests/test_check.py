"""`check`, `compare`, and that no wrong result passes them."""

import ast
import inspect
from pathlib import Path

import numpy
import pytest
from port import port

import duogpt
from duogpt import _duogpt

CASES = {case.name: case for case in duogpt.cases()}
NEGATIVES = duogpt.negatives()


def failure(report):
    (only,) = report.failures
    return only


@pytest.mark.parametrize("negative", NEGATIVES, ids=lambda negative: negative.name)
def test_a_wrong_result_is_rejected_at_its_stage(negative):
    case = CASES[negative.of]
    report = duogpt.check(lambda case: negative.results, cases=[case])
    assert not report and not report.passed
    found = failure(report)
    assert (found["stage"], found["place"]) == (negative.first_bad_stage, negative.first_bad_place)
    assert found["cause"] and found["case"] == case.name
    output = {name: array for name, array in negative.results.items() if name in case.outputs}
    assert not duogpt.check(lambda case: output, cases=[case])


def test_there_are_wrong_results_of_most_algorithms():
    algorithms = {negative.of.split("/")[0] for negative in NEGATIVES}
    assert len(NEGATIVES) >= 36 and algorithms >= {"sparsegpt", "duogpt", "wanda", "gptq", "gptaq", "activation"}
    assert {n.name for n in duogpt.negatives("wanda")} == {n.name for n in NEGATIVES if n.of.startswith("wanda/")}


def the_input(case):
    return next(case.inputs[name] for name in ("weight", "probe", "activations") if name in case.inputs)


def filled(value):
    return lambda case: {name: numpy.full_like(case.expected[name], value) for name in case.outputs}


def raises(case):
    raise RuntimeError("no such kernel")


PORTS = {
    "input": the_input,
    "all inputs": lambda case: case.inputs,
    "zeros": filled(0),
    "NaN": lambda case: {name: numpy.full(case.expected[name].shape, numpy.nan) for name in case.outputs},
    "raises": raises,
    "None": lambda case: None,
    "nothing": lambda case: {},
    "a stage, but no output": lambda case: {n: a for n, a in port(case).items() if n not in case.outputs}
    if isinstance(port(case), dict)
    else {},
    "another shape": lambda case: {name: case.expected[name][..., None] for name in case.outputs},
    # An error is a vector, its own transpose.
    "the transpose": lambda case: {name: case.expected[name].T for name in case.outputs if name != "output.error"},
    "a word": lambda case: "done",
}


@pytest.mark.parametrize("what", PORTS)
def test_a_port_that_does_nothing_right_passes_nothing(what):
    report = duogpt.check(PORTS[what])
    assert not report
    assert set(report.verdicts) == set(CASES)
    assert [name for name, verdict in report.verdicts.items() if verdict == "pass"] == []
    # Where the right result is the input or zero, such an output is not wrong.
    undecided = {name for name, verdict in report.verdicts.items() if verdict == "undecided"}
    assert not undecided or what in ("input", "zeros")
    assert (f"{len(undecided)} undecided" in str(report)) == bool(undecided)
    for name in undecided:
        (expected,) = (CASES[name].expected[output] for output in CASES[name].outputs)
        assert not expected.any() or (expected == the_input(CASES[name])).all()


def test_an_exception_is_named_with_its_line():
    found = failure(duogpt.check(raises, cases=[CASES["sparsegpt/basic"]]))
    assert found["stage"] == "call"
    assert "RuntimeError: no such kernel" in found["why"] and "test_check.py, line" in found["why"]
    found = failure(duogpt.check(lambda case: {"output.weight": "done"}, cases=[CASES["sparsegpt/basic"]]))
    assert found["stage"] == "call" and "`output.weight`" in found["why"]
    assert found["cause"] and "call" in duogpt.check(raises, "magnitude").html()

    def interrupted(case):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        duogpt.check(interrupted, "wanda")


def test_what_a_port_does_to_its_inputs_changes_no_verdict():
    def careless(case):
        for array in (*case.inputs.values(), *case.expected.values()):
            array[...] = 1
        return port(case)

    assert duogpt.check(careless, "magnitude")


def test_a_port_in_single_precision_passes_with_a_tolerance():
    case = CASES["sparsegpt/basic"]

    def single(case):
        gathered = duogpt.statistics(case.inputs["activations"].astype("float32"), calls=case.inputs["calls"])
        return duogpt.sparsegpt(case.inputs["weight"].astype("float32"), gathered, block_size=16)

    found = duogpt.check(lambda case: single(case).weight, cases=[case])
    assert not found
    assert duogpt.check(lambda case: single(case).weight, cases=[case], rtol=1e-4)


def test_the_report_as_text_page_and_data():
    cases = [CASES["wanda/basic"], CASES["sparsegpt/basic"]] if "wanda/basic" in CASES else duogpt.cases("wanda")[:2]
    report = duogpt.check(filled(0), cases=cases)
    text, page = str(report), report.html()
    assert f"FAIL  {cases[0].name}" in text and "usual causes:" in text and "2 cases, 2 failed" in text
    assert 'class="picture"' in page and cases[0].name in page and "duogpt.check(filled" in page
    shown = report._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and page.replace("&", "&amp;").replace('"', "&quot;") in shown
    assert len(report.to_dict()["files"]) == 2
    assert not duogpt.check(port, cases=[]) and not duogpt.Report("nothing").passed


def test_which_cases_are_run():
    wanda = duogpt.cases("wanda")
    assert wanda and {case.algorithm for case in wanda} == {"wanda"}
    seen = []
    duogpt.check(lambda case: seen.append(case.name), algorithm="wanda")
    assert seen == [case.name for case in wanda]
    with pytest.raises(duogpt.DuogptError, match="no algorithm `obs`: there are activation, duogpt"):
        duogpt.check(port, algorithm="obs")
    with pytest.raises(TypeError, match="either cases"):
        duogpt.check(port, "wanda", cases=wanda)


def test_vectors_of_another_folder(tmp_path):
    with pytest.raises(duogpt.DuogptError, match="no cases .* vectors="):
        duogpt.cases(vectors=tmp_path)
    with pytest.raises(duogpt.DuogptError, match="absent"):
        duogpt.cases(vectors=tmp_path / "absent")
    one = Path(duogpt._vectors.VECTORS) / "sparsegpt" / "basic"
    assert [case.name for case in duogpt.cases(vectors=one)] == ["sparsegpt/basic"]
    copy = tmp_path / "basic"
    copy.mkdir()
    (copy / "tensors.safetensors").write_bytes((one / "tensors.safetensors").read_bytes())
    text = (one / "case.json").read_text()
    (copy / "case.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(duogpt.DuogptError, match="schema_version 2; this program reads 1"):
        duogpt.check(port, vectors=tmp_path)


def test_a_case_says_what_it_is():
    case = CASES["sparsegpt/basic"]
    assert (case.algorithm, case.dialect, case.shape, case.tolerance) == ("sparsegpt", "original", (16, 64), 1e-9)
    assert case.settings["block_size"] == 16 and case.outputs == ["output.weight"]
    assert set(case.inputs) == {"weight", "activations", "calls"}
    assert case.inputs["weight"].shape == (16, 64) and case.inputs["weight"].dtype == numpy.float64
    assert case.expected["trace.mask"].dtype == bool and case.flags and case.meaning["stats.hessian"]
    assert list(case.stages)[0] == "statistics" and list(case.stages)[-1] == "output"
    assert repr(case) == "Case(sparsegpt/basic)"


def test_compare_shows_the_first_difference_and_its_form():
    expected = {"stats.hessian": numpy.arange(1.0, 10.0).reshape(3, 3), "trace.mask": numpy.eye(3, dtype=bool)}
    assert duogpt.compare(expected, expected)
    found = {**expected, "stats.hessian": expected["stats.hessian"].T}
    report = duogpt.compare(expected, found)
    assert not report and [f["tensor"] for f in report.failures] == ["stats.hessian"]
    assert "row 0, column 1: 4e0 for 2e0" in str(report) and "transpose of what was expected" in str(report)
    assert "2 stages, 1 failed" in str(report)
    flipped = {**expected, "trace.mask": ~expected["trace.mask"]}
    assert "9 of 9 decisions differ" in str(duogpt.compare(expected, flipped))
    missing = duogpt.compare(expected, {"trace.mask": expected["trace.mask"]})
    assert missing and "`stats.hessian` is only in expected" in str(missing)


def test_compare_takes_single_arrays_of_any_type():
    x = numpy.linspace(-1.0, 1.0, 24).reshape(2, 3, 4)
    assert duogpt.compare(x, x.tolist()) and duogpt.compare(3.0, 3.0)
    assert duogpt.compare(x, x.astype("float16"), tolerance=2.0**-11)  # u of float16
    assert not duogpt.compare(x, x.astype("float16"))
    assert not duogpt.compare(x, numpy.where(x == x[0, 0, 0], numpy.nan, x), tolerance=0.9)
    assert "shape" in str(duogpt.compare(x, x[:1]))
    for wrong in ("word", [1j], object()):
        with pytest.raises(TypeError, match="`array`"):
            duogpt.compare(x, wrong)
    for tolerance in (1.0, float("inf")):
        with pytest.raises(duogpt.DuogptError, match="accepts zeros for any result"):
            duogpt.compare(x, x, tolerance=tolerance)
        with pytest.raises(duogpt.DuogptError, match="accepts zeros for any result"):
            duogpt.check(port, "wanda", rtol=tolerance)
    with pytest.raises(duogpt.DuogptError, match="`NaN` is not a tolerance"):
        duogpt.compare(x, x, tolerance=float("nan"))
    with pytest.raises(TypeError, match="two arrays, or two dicts"):
        duogpt.compare({"a": x}, x)
    with pytest.raises(duogpt.DuogptError, match="same name"):
        duogpt.compare({"a": x}, {"b": x})


def test_the_stubs_describe_the_native_module():
    stub = ast.parse(Path(_duogpt.__file__).with_name("_duogpt.pyi").read_text())
    described = {node.name: node for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    native = {name: value for name, value in vars(_duogpt).items() if not name.startswith("__")}
    assert set(described) == set(native)
    for name, node in described.items():
        if isinstance(node, ast.FunctionDef):
            assert [a.arg for a in node.args.args] == list(inspect.signature(native[name]).parameters), name
        elif not issubclass(native[name], Exception):
            members = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
            there = {member for member in vars(native[name]) if not member.startswith("__")}
            assert {member for member in members if not member.startswith("__")} == there, name
    assert (Path(duogpt.__file__).with_name("py.typed")).exists()
