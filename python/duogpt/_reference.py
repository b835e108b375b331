"""The reference by function.

Settings have the names of the test vectors' settings (``fixtures/vectors/v1/SCHEMA.md``), so that a function takes those of a
case, but for ``mask_rule`` and ``activation_sparsity``, which describe it. ``lazy_update``, ``threshold`` and ``dead_channels`` are
flags of ``duogpt prune``. Arrays are float32 or float64, all of a call in one type, and read in place whatever their
strides. Results are new arrays. The GIL is released while a function computes: leave its arrays alone meanwhile.

Errors are ``DuogptError`` (a ``ValueError``), and ``TypeError`` for arguments of a wrong type.
"""

from __future__ import annotations

from typing import Any, Literal, Mapping, Sequence, Union, overload

import numpy
from numpy.typing import NDArray

from . import _duogpt
from ._duogpt import Prepared, Pruned, Statistics

#: A fraction, "N:M" with N zeros of every M columns, or {"n": N, "m": M, "counts": "pruned"}.
Sparsity = Union[float, str, Mapping[str, Any]]
ColumnOrder = Literal["natural", "hessian", "hessian_drift", "interleaved"]


def statistics(activations: Any, dense_activations: Any = None, *, calls: Any = None) -> Statistics:
    """H, and with ``dense_activations`` dX X^T and diag(dX dX^T): means over sequences of the sums over tokens.

    ``activations`` is what the layer sees in the pruned model (X^), ``dense_activations`` what it sees in the original one
    (X~), in the same shape: one sequence (tokens x k), or sequences x tokens x k. ``calls`` cuts a tokens x k array into
    sequences: each of its rows is [sequences, tokens]. For more data than fits into memory, call
    ``Statistics(k).update`` sequence by sequence.
    """
    return _duogpt.statistics(activations, dense_activations, calls)


def channel_norms(activations: Any, *, calls: Any = None) -> NDArray[Any]:
    """The mean over sequences of the sum over tokens of x^2 (k): what Wanda needs. Arguments as in ``statistics``."""
    return _duogpt.channel_norms(activations, calls)


def prepare(
    statistics: Statistics,
    *,
    algorithm: Literal["duogpt", "sparsegpt"] = "duogpt",
    weight_sparsity: Sparsity = 0.5,
    block_size: int = 128,
    damping: float = 0.01,
    alpha: float = 0.25,
    column_order: ColumnOrder = "natural",
    order_run: int = 32,
    hessian_factor: int = 1,
    lazy_update: Literal["pruned", "compensated"] = "pruned",
    threshold: Literal["inclusive", "exact"] = "inclusive",
    dead_channels: Literal["zero", "keep"] = "zero",
    skip_narrow_group: bool = False,
    order: Sequence[int] | None = None,
) -> Prepared:
    """The part of ``prune`` that does not depend on the weight, once for all linears that share an input.

    ``Prepared.prune(weight)`` is the other part. Arguments as in ``prune``.
    """
    settings = dict(
        weight_sparsity=weight_sparsity,
        block_size=block_size,
        damping=damping,
        alpha=alpha,
        column_order=column_order,
        order_run=order_run,
        hessian_factor=hessian_factor,
        lazy_update=lazy_update,
        threshold=threshold,
        dead_channels=dead_channels,
        skip_narrow_group=skip_narrow_group,
    )
    return _duogpt.prepare(algorithm, statistics, settings, order)


def prune(
    weight: Any,
    statistics: Statistics,
    *,
    weight_sparsity: Sparsity = 0.5,
    block_size: int = 128,
    damping: float = 0.01,
    alpha: float = 0.25,
    column_order: ColumnOrder = "natural",
    order_run: int = 32,
    hessian_factor: int = 1,
    lazy_update: Literal["pruned", "compensated"] = "pruned",
    threshold: Literal["inclusive", "exact"] = "inclusive",
    dead_channels: Literal["zero", "keep"] = "zero",
    skip_narrow_group: bool = False,
    bits: int | None = None,
    symmetric: bool = True,
    mse: bool = False,
    grid: Literal["offset", "signed"] = "signed",
    group_size: int | None = None,
    static_groups: bool = False,
    order: Sequence[int] | None = None,
    mask: Any = None,
    stages: bool = False,
) -> Pruned:
    """DuoGPT (Algorithm 1) on one linear: ``weight`` (n x k) with the statistics of its input.

    - ``damping``: H += damping * mean(diag H) * I. ``alpha``: the factor on the terms of the output residual.
    - ``block_size``: columns per block of mask selection and lazy update.
    - ``threshold``: "inclusive" prunes one weight more per block than the fraction, and all ties, like the original.
    - ``skip_narrow_group``: whether an N:M group that is cut short stays dense instead of being pruned.
    - ``bits``: rounds the kept weights to grids in the same loop, as in ``gptaq``.
    - ``order`` (position to original column) and ``mask`` (n x k, bool, True = pruned) replay decisions of another run.
    - ``stages``: whether every intermediate result is returned too, under its name in the test vectors. The layer is then
      computed a second time.

    Raises ``NotPositiveDefiniteError`` when the damped Hessian has no Cholesky factor.
    """
    settings = dict(
        weight_sparsity=weight_sparsity,
        block_size=block_size,
        damping=damping,
        alpha=alpha,
        column_order=column_order,
        order_run=order_run,
        hessian_factor=hessian_factor,
        lazy_update=lazy_update,
        threshold=threshold,
        dead_channels=dead_channels,
        skip_narrow_group=skip_narrow_group,
        bits=bits,
        symmetric=symmetric,
        mse=mse,
        grid=grid,
        group_size=group_size,
        static_groups=static_groups,
    )
    return _duogpt.layer("duogpt", weight, statistics, settings, order, mask, stages)


def sparsegpt(
    weight: Any,
    statistics: Statistics,
    *,
    weight_sparsity: Sparsity = 0.5,
    block_size: int = 128,
    damping: float = 0.01,
    column_order: ColumnOrder = "natural",
    order_run: int = 32,
    hessian_factor: int = 2,
    threshold: Literal["inclusive", "exact"] = "inclusive",
    dead_channels: Literal["zero", "keep"] = "zero",
    skip_narrow_group: bool = False,
    identity_fallback: bool = False,
    preserve_mask: bool = False,
    bits: int | None = None,
    symmetric: bool = True,
    mse: bool = False,
    grid: Literal["offset", "signed"] = "offset",
    group_size: int | None = None,
    static_groups: bool = False,
    order: Sequence[int] | None = None,
    mask: Any = None,
    stages: bool = False,
) -> Pruned:
    """SparseGPT on one linear: ``prune`` without dX.

    ``identity_fallback`` goes on with the identity where the Hessian has no factor, and ``preserve_mask`` keeps the zeros
    that are there, both as llm-compressor does. Other arguments, and errors, as in ``prune``.
    """
    settings = dict(
        weight_sparsity=weight_sparsity,
        block_size=block_size,
        damping=damping,
        column_order=column_order,
        order_run=order_run,
        hessian_factor=hessian_factor,
        threshold=threshold,
        dead_channels=dead_channels,
        skip_narrow_group=skip_narrow_group,
        identity_fallback=identity_fallback,
        preserve_mask=preserve_mask,
        bits=bits,
        symmetric=symmetric,
        mse=mse,
        grid=grid,
        group_size=group_size,
        static_groups=static_groups,
    )
    return _duogpt.layer("sparsegpt", weight, statistics, settings, order, mask, stages)


def gptq(
    weight: Any,
    statistics: Statistics,
    *,
    bits: int = 4,
    symmetric: bool = True,
    mse: bool = False,
    grid: Literal["offset", "signed"] = "offset",
    group_size: int | None = None,
    static_groups: bool = False,
    block_size: int = 128,
    damping: float = 0.01,
    column_order: ColumnOrder = "natural",
    order_run: int = 32,
    hessian_factor: int = 2,
    order: Sequence[int] | None = None,
    stages: bool = False,
) -> Pruned:
    """GPTQ on one linear: the column loop with every weight rounded to a grid.

    - ``symmetric``, ``mse``: the grid lies symmetrically around zero; its range is searched for the least error.
    - ``grid``: "offset" has GPTQ's codes 0 .. 2^bits - 1, "signed" GPTAQ's.
    - ``group_size``: columns per grid; None is one grid per row. ``static_groups``: grids of the original weights, else of
      the weights as they stood when the block began, as in the original code.

    Other arguments, and errors, as in ``prune``.
    """
    settings = dict(
        bits=bits,
        symmetric=symmetric,
        mse=mse,
        grid=grid,
        group_size=group_size,
        static_groups=static_groups,
        block_size=block_size,
        damping=damping,
        column_order=column_order,
        order_run=order_run,
        hessian_factor=hessian_factor,
    )
    return _duogpt.layer("gptq", weight, statistics, settings, order, None, stages)


def gptaq(
    weight: Any,
    statistics: Statistics,
    *,
    bits: int = 4,
    symmetric: bool = True,
    mse: bool = False,
    grid: Literal["offset", "signed"] = "signed",
    group_size: int | None = None,
    static_groups: bool = False,
    block_size: int = 128,
    damping: float = 0.01,
    alpha: float = 0.25,
    column_order: ColumnOrder = "natural",
    order_run: int = 32,
    hessian_factor: int = 2,
    group_member: int = 0,
    order: Sequence[int] | None = None,
    stages: bool = False,
) -> Pruned:
    """GPTAQ on one linear: ``gptq`` with the correction of the output residual.

    ``group_member``: how many linears worked on the same H in place before this one, as in the original code. Other
    arguments, and errors, as in ``gptq``.
    """
    settings = dict(
        bits=bits,
        symmetric=symmetric,
        mse=mse,
        grid=grid,
        group_size=group_size,
        static_groups=static_groups,
        block_size=block_size,
        damping=damping,
        alpha=alpha,
        column_order=column_order,
        order_run=order_run,
        hessian_factor=hessian_factor,
        group_member=group_member,
    )
    return _duogpt.layer("gptaq", weight, statistics, settings, order, None, stages)


def wanda(
    weight: Any,
    norms: Any,
    *,
    weight_sparsity: Sparsity = 0.5,
    variant: Literal["cumulative"] | None = None,
    skip_narrow_group: bool = False,
) -> Pruned:
    """Wanda on one linear (n x k): in each row the lowest |W| sqrt(norm). ``norms`` (k) are those of ``channel_norms``.

    ``variant="cumulative"`` prunes each row by its share of the scores (``use_variant``).
    """
    return _duogpt.wanda(weight, norms, weight_sparsity, variant, skip_narrow_group)


def magnitude(weight: Any, *, weight_sparsity: Sparsity = 0.5, skip_narrow_group: bool = False) -> Pruned:
    """Magnitude pruning of one linear: the lowest |W| of the layer, or N of every M columns in each row."""
    return _duogpt.magnitude(weight, weight_sparsity, skip_narrow_group)


@overload
def thresholds(
    activations: Any, activation_sparsity: float, *, bins: int | None = None, outlier_threshold: float = 0.01
) -> float: ...
@overload
def thresholds(
    activations: Any,
    activation_sparsity: Sequence[float],
    *,
    bins: int | None = None,
    outlier_threshold: float = 0.01,
) -> NDArray[Any]: ...
def thresholds(
    activations: Any,
    activation_sparsity: float | Sequence[float],
    *,
    bins: int | None = None,
    outlier_threshold: float = 0.01,
) -> float | NDArray[Any]:
    """TEAL's threshold t for a sparsity, or an array of one for each of several: |x| <= t is pruned.

    Magnitudes are counted in logarithmic bins; with ``bins``, signed values are counted in that many bins of equal width,
    with a share of ``outlier_threshold`` on either side in the outermost bins, as in the original code.
    """
    asked = numpy.asarray(activation_sparsity, dtype=float)
    found = _duogpt.thresholds(activations, numpy.atleast_1d(asked).tolist(), bins, outlier_threshold)
    return numpy.array(found) if asked.ndim else found[0]


def prune_activations(
    activations: Any,
    activation_sparsity: float | None = None,
    *,
    threshold: float | None = None,
    apply_prefill: bool | None = None,
) -> NDArray[Any]:
    """A copy of the activations (... x tokens x k) with the entries of small magnitude set to zero.

    ``activation_sparsity`` prunes this fraction of each token's entries; ties at the threshold stay. ``threshold`` prunes
    |x| <= threshold: of every token, or with ``apply_prefill`` as TEAL does in prompts of more than one token: True leaves
    their first half dense, False the whole prompt.
    """
    return _duogpt.prune_activations(activations, activation_sparsity, threshold, apply_prefill)
