"""The reference of DuoGPT and its relatives by function, and test vectors to check a port by.

- ``statistics``, ``prepare``, ``prune``, ``sparsegpt``, ``gptq``, ``gptaq``, ``channel_norms``, ``wanda``, ``magnitude``,
  ``thresholds`` and ``prune_activations`` compute on arrays, in float32 or float64.
- ``check`` runs a function of yours over the test vectors, ``cases`` gives them, ``compare`` compares arrays.

Arrays may be numpy's, tensors of PyTorch, or anything with ``__array__`` or ``__dlpack__``.
"""

from importlib.metadata import version

from ._duogpt import (
    Case,
    DuogptError,
    Negative,
    NotPositiveDefiniteError,
    Prepared,
    Pruned,
    Report,
    Statistics,
)
from ._reference import (
    channel_norms,
    gptaq,
    gptq,
    magnitude,
    prepare,
    prune,
    prune_activations,
    sparsegpt,
    statistics,
    thresholds,
    wanda,
)
from ._vectors import cases, check, compare, negatives

__version__ = version("duogpt")

__all__ = [
    "Case",
    "DuogptError",
    "Negative",
    "NotPositiveDefiniteError",
    "Prepared",
    "Pruned",
    "Report",
    "Statistics",
    "cases",
    "channel_norms",
    "check",
    "compare",
    "gptaq",
    "gptq",
    "magnitude",
    "negatives",
    "prepare",
    "prune",
    "prune_activations",
    "sparsegpt",
    "statistics",
    "thresholds",
    "wanda",
]
