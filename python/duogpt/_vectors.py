"""Checking a port: the test vectors, and the judge of ``duogpt verify``."""

from __future__ import annotations

import os
import traceback
from typing import Any, Callable, Iterable, Mapping

from . import _duogpt
from ._duogpt import Case, DuogptError, Negative, Report

#: The test vectors that come with the package.
VECTORS = os.path.join(os.path.dirname(__file__), "vectors")

ALGORITHMS = ("activation", "duogpt", "gptaq", "gptq", "magnitude", "sparsegpt", "teal", "wanda")


def cases(algorithm: str | None = None, *, vectors: str | os.PathLike[str] | None = None) -> list[Case]:
    """The cases of an algorithm, or all; of another folder than the package's with ``vectors``.

    The algorithms are activation, duogpt, gptaq, gptq, magnitude, sparsegpt, teal and wanda.
    """
    return _cases(algorithm, vectors)


def _cases(algorithm: str | None, vectors: str | os.PathLike[str] | None) -> list[Case]:
    _known(algorithm)
    found = _duogpt.cases(VECTORS if vectors is None else vectors)
    return [case for case in found if algorithm in (None, case.algorithm)]


def negatives(
    algorithm: str | None = None, *, vectors: str | os.PathLike[str] | None = None
) -> list[Negative]:
    """Results with one defect each, which a judge must reject; arguments as in ``cases``."""
    _known(algorithm)
    found = _duogpt.negatives(VECTORS if vectors is None else vectors)
    return [negative for negative in found if algorithm in (None, negative.of.split("/")[0])]


def _known(algorithm: str | None) -> None:
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise DuogptError(f"no algorithm `{algorithm}`: there are {', '.join(ALGORITHMS)}")


def check(
    function: Callable[[Case], Any],
    algorithm: str | None = None,
    *,
    cases: Iterable[Case] | None = None,
    rtol: float | None = None,
    vectors: str | os.PathLike[str] | None = None,
) -> Report:
    """Runs ``function`` on every case of an algorithm, and judges what it returns as ``duogpt verify --results`` does.

    ``function(case)`` reads ``case.inputs`` and ``case.settings``, and returns its arrays by the names that
    ``case.expected`` has: the output is required, every other tensor it returns is compared too, and the report names the
    first wrong stage in computing order. An array alone counts as the output. Where ``case.outputs`` is
    ``["output.error"]``, the original stops with an error, and the result must be ``{"output.error": [1]}``. A result that
    shows nothing but zeros or inputs is undecided where that is right.

    ``cases`` are those to run, where not all of an algorithm are wanted. ``rtol`` replaces the tolerance of the cases,
    for a port in single precision about 1e-4. Exceptions of the function become failures in the report.
    """
    if cases is None:
        cases = _cases(algorithm, vectors)
    elif algorithm is not None or vectors is not None:
        raise TypeError("give either cases, or algorithm and vectors")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    asked = "cases=..." if algorithm is None else f'algorithm="{algorithm}"'
    report = Report(f"duogpt.check({name}, {asked})")
    for case in cases:
        try:
            results = function(case)
        except Exception as error:
            report.reject(case, name, _described(error))
            continue
        if results is None:
            report.reject(case, name, "the function returned None")
        elif isinstance(results, Mapping):
            report.judge(case, name, dict(results), rtol)
        else:
            report.judge(case, name, {case.outputs[0]: results}, rtol)
    return report


def _described(error: Exception) -> str:
    """The exception and the line that raised it."""
    what = "".join(traceback.format_exception_only(type(error), error)).strip()
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first one is ours
    if not frames:
        return what
    return f"{what} ({frames[-1].filename}, line {frames[-1].lineno})"


def compare(expected: Any, found: Any, *, tolerance: float = 1e-9) -> Report:
    """Compares two arrays, or two dicts of arrays by name, as ``duogpt compare-tensors`` does.

    Values may differ by ``tolerance`` times the largest entry expected in their array; bool and integers must be equal. The
    report says where the first difference in processing order is, how large the errors are, and what they look like.
    Names that only one side has are listed and skipped.
    """
    if isinstance(expected, Mapping) != isinstance(found, Mapping):
        raise TypeError("give two arrays, or two dicts of arrays")
    if not isinstance(expected, Mapping):
        expected, found = {"array": expected}, {"array": found}
    return _duogpt.compare(dict(expected), dict(found), tolerance)
