"""The reference by function: on every case of the vectors, in both types, and on what it must refuse."""

import sys
import threading
import tracemalloc

import numpy
import pytest
from port import LOOP, port, settings, statistics

import duogpt


def case_named(name):
    return next(case for case in duogpt.cases(name.split("/")[0]) if case.name == name)


@pytest.fixture
def layer():
    random = numpy.random.default_rng(7)
    weight, dense = random.normal(size=(12, 32)), random.normal(size=(3, 40, 32))
    return weight, duogpt.prune_activations(dense, 0.5), dense


def test_every_case_agrees_stage_by_stage():
    report = duogpt.check(port)
    assert report, str(report)
    assert len(report.to_dict()["files"]) == len(duogpt.cases())
    algorithms = {case.algorithm for case in duogpt.cases()}
    assert algorithms == {*LOOP, "wanda", "magnitude", "activation", "teal"}


def test_a_result_is_what_its_stages_say():
    case = case_named("duogpt/act-order")
    found = duogpt.prune(case.inputs["weight"], statistics(case), stages=True, **settings(case))
    order = found.stages["trace.perm"]
    assert sorted(order) == list(range(len(order))) and list(order) != sorted(order)
    assert (found.mask[:, order] == found.stages["trace.mask"]).all()
    assert (found.weight == found.stages["output.weight"]).all()
    assert (found.score == found.stages["trace.score"]).all()
    assert (found.weight[found.mask] == 0).all() and (found.weight[~found.mask] != 0).all()
    assert duogpt.prune(case.inputs["weight"], statistics(case), **settings(case)).stages is None


def test_prepared_once_for_all_linears_of_an_input(layer):
    weight, sparse, dense = layer
    gathered = duogpt.statistics(sparse, dense)
    options = dict(weight_sparsity="2:4", block_size=16, column_order="hessian", damping=0.1)
    prepared = duogpt.prepare(gathered, **options)
    whole = duogpt.prune(weight, gathered, stages=True, **options)
    part = prepared.prune(weight)
    assert (part.weight == whole.weight).all() and (part.mask == whole.mask).all()
    assert (prepared.perm == whole.stages["trace.perm"]).all()
    assert (prepared.hinv_chol == whole.stages["trace.hinv_chol"]).all()
    assert numpy.allclose(prepared.d * 0.25, whole.stages["trace.p_matrix"], rtol=0, atol=0)
    assert not prepared.dead.any() and prepared.score_scale.shape == (32,)


def test_order_and_mask_of_another_run_are_followed(layer):
    weight, sparse, dense = layer
    gathered = duogpt.statistics(sparse, dense)
    first = duogpt.prune(weight, gathered, column_order="hessian", stages=True)
    replay = duogpt.prune(weight, gathered, order=first.stages["trace.perm"], mask=first.mask)
    assert (replay.weight == first.weight).all()
    other = duogpt.prune(weight, gathered, mask=~first.mask)
    assert (other.mask == ~first.mask).all()


def test_the_type_of_the_arguments_decides(layer):
    weight, sparse, dense = layer
    single = duogpt.statistics(sparse.astype("float32"), dense.astype("float32"))
    double = duogpt.statistics(sparse.astype("float32").astype("float64"), dense.astype("float32").astype("float64"))
    assert (single.dtype, double.dtype) == ("float32", "float64")
    assert single.hessian.dtype == numpy.float32
    # A sum of 40 products, a mean of 3: at most 40 + 3 roundings of each term, and of u^2 little.
    terms = numpy.mean(numpy.abs(sparse).transpose(0, 2, 1) @ numpy.abs(sparse), axis=0)
    assert (numpy.abs(single.hessian - double.hessian) <= 44 * 2.0**-24 * terms).all()
    assert (single.hessian != double.hessian).any()
    pruned = duogpt.prune(weight.astype("float32"), single)
    assert pruned.weight.dtype == pruned.score.dtype == numpy.float32 and pruned.mask.dtype == bool
    with pytest.raises(TypeError, match="some arguments are float32 and some float64"):
        duogpt.prune(weight, single)
    with pytest.raises(TypeError, match="some arguments are float32 and some float64"):
        duogpt.statistics(sparse, dense.astype("float32"))
    with pytest.raises(TypeError, match="weight has type float16: convert it to float32 or float64"):
        duogpt.magnitude(weight.astype("float16"))
    with pytest.raises(TypeError, match="weight has type int64"):
        duogpt.magnitude(weight.astype("int64"))


def test_statistics_sequence_by_sequence(layer):
    _, sparse, dense = layer
    whole = duogpt.statistics(sparse, dense)
    parts = duogpt.Statistics(32, residual=True)
    for one, other in zip(sparse, dense):
        parts.update(one, other)
    flat = duogpt.statistics(sparse.reshape(120, 32), dense.reshape(120, 32), calls=[[1, 40], [2, 40]])
    for other in (parts, flat):
        assert (other.k, other.sequences) == (32, 3)
        for name in ("hessian", "dxxt", "dxdxt"):
            assert (getattr(other, name) == getattr(whole, name)).all()
    assert duogpt.statistics(sparse).dxxt is None


def test_any_strides_are_read_in_place(layer):
    weight, sparse, dense = layer
    gathered = duogpt.statistics(sparse, dense)
    expected = duogpt.prune(weight, gathered).weight
    turned = numpy.asfortranarray(weight)
    backwards = numpy.ascontiguousarray(weight[::-1, ::-1])[::-1, ::-1]
    wide = numpy.zeros((24, 96))
    wide[::2, ::3] = weight
    for same in (turned, backwards, wide[::2, ::3]):
        assert (duogpt.prune(same, gathered).weight == expected).all()
    assert (duogpt.prune_activations(numpy.asfortranarray(dense[0]), 0.5) == sparse[0]).all()
    assert (weight == turned).all()  # inputs stay as they are


class ByArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class ByDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("wrap", [ByArray, ByDlpack])
def test_tensors_of_other_packages_are_accepted(layer, wrap):
    weight = layer[0]
    expected = duogpt.magnitude(weight).weight
    assert (duogpt.magnitude(wrap(weight)).weight == expected).all()
    assert (duogpt.magnitude(weight.tolist()).weight == expected).all()


def test_tensors_of_pytorch_are_accepted(layer):
    torch = pytest.importorskip("torch")
    weight = layer[0]
    tensor = torch.nn.Parameter(torch.from_numpy(weight))
    assert (duogpt.magnitude(tensor).weight == duogpt.magnitude(weight).weight).all()
    half = torch.from_numpy(weight).to(torch.bfloat16)
    with pytest.raises(TypeError, match="weight has type torch.bfloat16: convert it to float32 or float64"):
        duogpt.magnitude(half)
    # As a result it is rounded to bfloat16, u = 2^-8, and not to something finer.
    assert duogpt.compare(weight, half, tolerance=2.0**-8) and not duogpt.compare(weight, half, tolerance=2.0**-12)
    assert duogpt.compare(half, half.float().numpy(), tolerance=0.0)


def test_tensors_of_pytorch_are_not_copied():
    torch = pytest.importorskip("torch")
    weight = torch.ones(1000, 1000, dtype=torch.float64)
    tracemalloc.start()
    pruned = duogpt.magnitude(weight.T).weight
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pruned.shape == weight.shape and peak < weight.nbytes / 10


def test_what_cannot_be_pruned_is_refused_with_the_reason(layer):
    weight, sparse, dense = layer
    gathered = duogpt.statistics(sparse, dense)

    def refused(words, call, error=duogpt.DuogptError):
        with pytest.raises(error, match=words) as caught:
            call()
        return caught.value

    refused("weight sparsity 1 is outside", lambda: duogpt.prune(weight, gathered, weight_sparsity=1))
    refused("`half` is no sparsity", lambda: duogpt.prune(weight, gathered, weight_sparsity="half"))
    refused("must be \"pruned\"", lambda: duogpt.magnitude(weight, weight_sparsity=dict(n=2, m=4, counts="kept")))
    refused("block size 0 must be positive", lambda: duogpt.prune(weight, gathered, block_size=0))
    refused("damping -1", lambda: duogpt.prune(weight, gathered, damping=-1))
    refused("column_order: unknown variant", lambda: duogpt.prune(weight, gathered, column_order="best"))
    refused("runs of 5 columns", lambda: duogpt.prune(weight, gathered, column_order="interleaved", order_run=5))
    refused("not a permutation of 32", lambda: duogpt.prune(weight, gathered, order=[0] * 32))
    refused("grids of 40 bits", lambda: duogpt.gptaq(weight, gathered, bits=40))
    refused("expected \\(12, 32\\)", lambda: duogpt.prune(weight[:, :8], gathered))
    refused("the shape of weight is \\[12\\]", lambda: duogpt.magnitude(weight[:, 0]))
    refused("needs the statistics of dX", lambda: duogpt.prune(weight, duogpt.statistics(sparse)))
    refused("dense_activations have shape", lambda: duogpt.statistics(sparse, dense[:2]))
    refused("calls counts 40 tokens", lambda: duogpt.statistics(sparse.reshape(120, 32), calls=[[1, 40]]))
    refused("expected tokens x k", lambda: duogpt.statistics(sparse[0, 0]))
    refused("activation sparsity 1", lambda: duogpt.prune_activations(dense, 1.0))
    refused("activation sparsity 2", lambda: duogpt.thresholds(dense, 2.0))
    refused("2 bins", lambda: duogpt.thresholds(dense, 0.5, bins=2))
    refused("either", lambda: duogpt.prune_activations(dense), TypeError)
    refused("damping: .*real number", lambda: duogpt.prune(weight, gathered, damping="much"), TypeError)
    refused("block_size: .*negative", lambda: duogpt.prune(weight, gathered, block_size=-1), TypeError)
    refused("weight_sparsity: a fraction", lambda: duogpt.prune(weight, gathered, weight_sparsity=None), TypeError)
    refused("weight_sparsity is .*: a fraction", lambda: duogpt.magnitude(weight, weight_sparsity=[2, 4]), TypeError)
    refused("\"m\" is missing", lambda: duogpt.magnitude(weight, weight_sparsity={"n": 2}))
    refused("threshold -1 must", lambda: duogpt.prune_activations(dense, threshold=-1.0))
    refused("threshold NaN must", lambda: duogpt.prune_activations(dense, threshold=float("nan")))
    refused("activations has a value that is not finite at row 0, column 0", lambda: duogpt.thresholds(dense * numpy.inf, 0.5))
    # A hook that never fired.
    refused("of no sequence", lambda: duogpt.sparsegpt(weight, duogpt.Statistics(32)))
    refused("the activations has shape \\(0, 32\\), expected \\(1, 32\\)", lambda: duogpt.statistics(dense[0, :0]))
    refused("no memory for the Hessian", lambda: duogpt.Statistics(2**31), MemoryError)
    refused("no memory for the Hessian", lambda: duogpt.Statistics(2**40), MemoryError)
    refused("no memory for .* bins", lambda: duogpt.thresholds(dense, 0.5, bins=10**15), MemoryError)
    refused("mask has type float64", lambda: duogpt.prune(weight, gathered, mask=weight), TypeError)
    refused("variant `cumulative` has no N:M", lambda: duogpt.wanda(weight, numpy.ones(32), weight_sparsity="2:4", variant="cumulative"))
    refused("norms have shape", lambda: duogpt.wanda(weight, weight))
    broken = weight.copy()
    broken[3, 5] = numpy.nan
    refused("not finite at row 3, column 5", lambda: duogpt.prune(broken, gathered))


def test_a_hessian_without_a_factor_is_an_error_of_its_own():
    activations = numpy.ones((4, 6))
    with pytest.raises(duogpt.NotPositiveDefiniteError, match="the Hessian is not positive definite") as caught:
        duogpt.sparsegpt(numpy.ones((2, 6)), duogpt.statistics(activations), damping=0.0)
    assert isinstance(caught.value, duogpt.DuogptError)
    assert 0 <= caught.value.column < 6 and caught.value.pivot == 8.0  # 2 * 4 tokens


def test_thresholds_and_what_they_prune():
    x = numpy.arange(1.0, 101.0)[None] * [[1.0], [-1.0]]
    one, several = duogpt.thresholds(x, 0.5), duogpt.thresholds(x, [0.0, 0.5])
    assert several.tolist() == [0.0, one]
    pruned = duogpt.prune_activations(x, threshold=one)
    # Half of the magnitudes lie at or below it, up to the width of a bin, 0.8 %.
    assert abs((pruned == 0).mean() - 0.5) <= 0.01
    prompt = duogpt.prune_activations(numpy.stack([x, x]), threshold=one, apply_prefill=True)
    assert (prompt[:, 0] == x[0]).all() and (prompt[:, 1] == pruned[1]).all()
    assert (duogpt.prune_activations(x, threshold=one, apply_prefill=False) == x).all()


def test_the_gil_is_released():
    """With a switch interval beyond the test's life another thread runs only where a call lets go of the GIL."""
    random = numpy.random.default_rng(1)
    weight, activations = random.normal(size=(512, 512)), random.normal(size=(600, 512))
    gathered = duogpt.statistics(activations)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for _ in range(20):
            started, finished = threading.Event(), threading.Event()

            def compute():
                started.set()
                duogpt.sparsegpt(weight, gathered)
                finished.set()

            worker = threading.Thread(target=compute)
            worker.start()
            started.wait()
            let_go = not finished.is_set()
            worker.join()
            if let_go:
                return
    finally:
        sys.setswitchinterval(before)
    pytest.fail("no other thread ran during a computation")
