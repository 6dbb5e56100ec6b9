"""Numbers: large scores, half precision, and gradients against differences of the oracle."""

import contextlib
import functools

import keras
import numpy as np
import pytest

from kattn.ops import attention, explain
from kattn.ops.kernels import banded, frames, tiles
from tests import oracle, rules
from tests.compute import assert_close, differentiate, run

BACKEND = keras.backend.backend()
KERNELS = ("dense", "chunked", "banded", "fused")
DTYPES = ("float32", "bfloat16", "float16")
B, T, S, N, K, D, DV = 2, 6, 6, 4, 2, 3, 3
SIDES = (3, 2)  # of a grid of 6 cells


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few steps and parts of one head, so that small inputs have many."""
    monkeypatch.setattr(tiles, "BLOCK", 4)
    monkeypatch.setattr(frames, "NARROWEST", 2)
    monkeypatch.setattr(banded, "MANY", 1)


@pytest.fixture(autouse=True)
def uncompiled():
    """JAX runs what it would compile: every case here would be another compilation."""
    with contextlib.ExitStack() as stack:
        if BACKEND == "jax":
            import jax

            stack.enter_context(jax.disable_jit())
        yield


KEYS = np.array([[1, 1, 0, 1, 1, 0], [0] * 6], bool)  # an item that is all padding
IDS = np.array([[0, 0, 1, 1, 1, -1], [3, 3, 3, 3, 0, 0]], "int32")
ARRAY = np.random.default_rng(1).random((B, N, T, S)) > 0.4
ARRAY[0, 1, 2] = False

MASKS = {
    "none": rules.everything,
    "causal": rules.causal,
    "window": lambda: rules.window(2),
    "causal window": lambda: rules.both(rules.causal(), rules.window(3)),
    "padding": lambda: rules.padding(KEYS),
    "window padding": lambda: rules.both(rules.padding(KEYS), rules.window(2)),
    "dense": lambda: rules.dense(ARRAY),
    "dilated": lambda: rules.dilated(2, 3),
    "dilated segments": lambda: rules.both(rules.segments(IDS), rules.dilated(2, 2)),
    "segments": lambda: rules.both(rules.causal(), rules.segments(IDS)),
    "prefix": lambda: rules.either(rules.causal(), rules.prefix(np.array([4, 0], "int32"))),
    "static prefix": lambda: rules.both(rules.causal(), rules.prefix(2)),
    "global": lambda: rules.either(rules.window(1), rules.global_tokens([4])),
    "sinks": lambda: rules.both(rules.causal(), rules.either(rules.window(2), rules.prefix(1))),
    "not": lambda: rules.both(rules.opposite(rules.dilated(2, 1)), rules.window(5)),
    "nothing": lambda: rules.both(rules.window(1), rules.opposite(rules.causal())),
}


MOST = 150  # differences for one array: of `grid by query` there are 240


def numbers(*shape, seed=2):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def infinite(array):
    return np.where(array < 0.3, array, np.float32(-np.inf))


BIASES = {
    "none": None,
    "alibi": lambda: rules.alibi(numbers(N)),
    "table": lambda: rules.clipped(numbers(N, 5)),
    "table of all heads": lambda: rules.clipped(numbers(1, 3)),
    "by query": lambda: rules.clipped(numbers(B, N, T, 7)),
    "t5": lambda: rules.t5(numbers(N, 8), 5, bidirectional=True),
    "t5, one way": lambda: rules.t5(numbers(N, 4), 5, bidirectional=False),
    "grid": lambda: rules.grid(numbers(N, 15), SIDES, (0, 1)),
    "grid by query": lambda: rules.grid(numbers(B, N, T, 5), SIDES, (0,)),
    "array": lambda: rules.array(numbers(B, N, T, S)),
    "array of queries": lambda: rules.array(numbers(1, N, T, 1)),
    "array of keys": lambda: rules.array(numbers(B, 1, 1, S)),
    "array of steps": lambda: rules.array(numbers(T, S)),
    "infinite": lambda: rules.array(infinite(numbers(B, N, T, S))),
    "sum": lambda: rules.total(
        rules.clipped(numbers(N, 5)),
        rules.clipped(numbers(B, N, T, 3, seed=3)),
        rules.alibi(numbers(N, seed=4)),
    ),
    "sum with an array": lambda: rules.total(
        rules.array(numbers(1, N, 1, S)), rules.t5(numbers(N, 8, seed=3), 5, bidirectional=True)
    ),
}


def serves(kernel, inputs, **options):
    try:
        explain(*inputs, implementation=kernel, **options)
    except ValueError as error:
        assert "cannot serve" in str(error)  # noqa: PT017
        return False
    return True


def make_inputs(scale=1.0):
    rng = np.random.default_rng(5)
    shapes = (B, T, N, D), (B, S, K, D), (B, S, K, DV)
    return [(scale * rng.normal(size=shape)).astype("float32") for shape in shapes]


UPSTREAM = np.random.default_rng(6).normal(size=(B, T, N, DV)).astype("float32")


def attend_at_once(q, k, v, keep, bias, scale, softcap, sinks):
    """`oracle.attention`, which it is held to, for all queries at once: differences take many."""
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    scores = scale * np.einsum("btnd,bsnd->bnts", q, k)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    scores = np.where(keep, scores if bias is None else scores + bias, -np.inf)
    sinks = np.full(N, -np.inf) if sinks is None else sinks
    sinks = np.broadcast_to(sinks[:, None, None], (B, N, T, 1))
    scores = np.concatenate([scores, sinks], axis=-1)
    highest = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(highest), highest, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    weights = powers[..., :-1] / np.where(total > 0.0, total, 1.0)
    return np.einsum("bnts,bsnd->btnd", weights, v)


class Expected:
    """Output and gradients of the oracle, the latter by central differences in float64."""

    def __init__(self, rule, score, inputs, *, sinks=None, scale=None, softcap=None):
        self.score, self.sinks = score, sinks
        self.options = {"scale": D**-0.5 if scale is None else scale, "softcap": softcap}
        arrays = () if score is None else score.arrays
        self.count = len(arrays)
        learned = [*inputs, *arrays] + ([] if sinks is None else [sinks])
        self.learned = [np.array(x, np.float64) for x in learned]
        self.keep, self.bias = rule.table(B, N, T, S), None
        if score is not None:
            self.bias = score.table(B, N, T, S)
            self.keep &= np.isfinite(self.bias)
        with np.errstate(over="ignore"):  # a sink far above all scores
            self.output, _ = oracle.attention(
                *inputs, keep=self.keep, bias=self.bias, sinks=sinks, **self.options
            )
        np.testing.assert_allclose(self._attend(self.learned, self.bias), self.output, atol=1e-12)

    def _attend(self, learned, bias):
        q, k, v, *rest = learned
        sinks = None if self.sinks is None else rest[-1]
        return attend_at_once(q, k, v, self.keep, bias, sinks=sinks, **self.options)

    @functools.cached_property
    def gradients(self):
        """(indices, numbers) for each of what is learned: all, or some of many."""
        return [self._gradient(which) for which in range(len(self.learned))]

    def _gradient(self, which):
        finite = np.isfinite(self.learned[which])
        where = np.argwhere(finite)
        where = np.random.default_rng(9).permutation(where)[:MOST]
        found = []
        for index in map(tuple, where):
            sums = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in self.learned]
                moved[which][index] += step
                bias, its = self.bias, range(3, 3 + self.count)
                if which in its:
                    bias = self.score.table(B, N, T, S, [moved[i] for i in its])
                sums.append((UPSTREAM * self._attend(moved, bias)).sum())
            found.append((sums[0] - sums[1]) / 2e-5)
        return tuple(where.T), np.array(found)


def attend(rule, score, kernel, dtype, count, sinks, **options):
    """A function of q, k, v, the arrays of the bias and sinks, whose inside is of `dtype`."""

    def call(q, k, v, *rest):
        bias = None if score is None else score.make(*rest[:count])
        tensors = [keras.ops.cast(x, dtype) for x in (q, k, v)]
        more = {"sinks": rest[count]} if sinks else {}
        found = attention(
            *tensors, mask=rule.mask, bias=bias, implementation=kernel, **options, **more
        )
        return keras.ops.cast(found, "float32")

    return call


@functools.cache
def expected_of(mask, bias, *, sinks, softcap):
    """What several kernels are held to."""
    score = BIASES[bias] and BIASES[bias]()
    more = {"sinks": numbers(N, seed=7)} if sinks else {}
    return Expected(MASKS[mask](), score, make_inputs(), softcap=softcap, scale=0.7, **more)


# Each mask alone, with sinks and a softcap, and with one of the biases; each bias with a window.
CASES = [(mask, "none", False) for mask in MASKS]
CASES += [(mask, "table", True) for mask in MASKS]
# Without sinks, numbers of queries alone change nothing.
CASES += [
    (mask, bias, bias == "array of queries")
    for mask in ("window padding", "causal")
    for bias in BIASES
    if bias != "none"
]


@pytest.mark.parametrize(("mask", "bias", "more"), CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_differences_of_the_oracle(kernel, mask, bias, more):
    options = {"sinks": more, "softcap": 1.5 if more else None}
    rule, score = MASKS[mask](), BIASES[bias] and BIASES[bias]()
    asked = {"mask": rule.mask, "bias": score and score.bias, "softcap": options["softcap"]}
    if not serves(kernel, make_inputs(), **asked, sinks=numbers(N) if more else None):
        assert kernel in ("banded", "fused")
        return
    expected = expected_of(mask, bias, **options)
    call = attend(
        rule, score, kernel, "float32", expected.count, more, scale=0.7, softcap=options["softcap"]
    )
    output, gradients = differentiate(call, expected.learned, UPSTREAM)
    assert_close(output, expected.output)
    for found, (index, wanted) in zip(gradients, expected.gradients, strict=True):
        assert np.isfinite(found).all()
        assert_close(found[index], wanted, 1e-4)

    unseen = ~expected.keep.any(-1).swapaxes(1, 2)  # (B, T, N)
    assert not output[unseen].any()
    assert not gradients[0][unseen].any()
    if unseen.any():  # what flows back into rows without keys reaches nothing
        _, gradients = differentiate(
            call, expected.learned, np.where(unseen[..., None], UPSTREAM, 0.0)
        )
        assert not any(found.any() for found in gradients)


@pytest.mark.parametrize("mask", ["none", "window padding"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_in_half_precision(kernel, dtype, mask):
    rule = MASKS[mask]()
    if not serves(kernel, [keras.ops.cast(x, dtype) for x in make_inputs()], mask=rule.mask):
        assert kernel in ("banded", "fused")
        return
    inputs = [run(round_to, x, dtype) for x in make_inputs()]
    expected = Expected(rule, None, inputs, scale=0.7)
    call = attend(rule, None, kernel, dtype, 0, False, scale=0.7)
    output, gradients = differentiate(call, inputs, UPSTREAM)
    tolerance = {"float16": 3e-3, "bfloat16": 2e-2}[dtype]
    assert_close(output, expected.output, tolerance)
    for found, (index, wanted) in zip(gradients, expected.gradients, strict=True):
        assert_close(found[index], wanted, tolerance)


def round_to(x, dtype):
    return keras.ops.cast(keras.ops.cast(x, dtype), "float32")


# An error of the scores of eps * 1e4 is one of as much of the weights, where two keys are close.
LARGE = {"float32": 5e-3, "float16": 1e-2, "bfloat16": 3e-2}


@pytest.mark.parametrize("softcap", [None, 30.0, 1e4])
@pytest.mark.parametrize("mask", ["none", "causal", "window padding", "dense", "nothing"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores(kernel, dtype, mask, softcap):
    """Up to 1e4."""
    rule, inputs = MASKS[mask](), make_inputs()
    tensors = [keras.ops.cast(x, dtype) for x in inputs]
    if not serves(kernel, tensors, mask=rule.mask, softcap=softcap):
        assert kernel in ("banded", "fused")
        return
    scores = np.einsum("btkgd,bskd->btkgs", inputs[0].reshape(B, T, K, N // K, D), inputs[1])
    factor = np.sqrt(1e4 / np.abs(scores).max())
    inputs = [run(round_to, x, dtype) for x in (inputs[0] * factor, inputs[1] * factor, inputs[2])]
    options = {"softcap": softcap, "scale": 1.0}
    expected = Expected(rule, None, inputs, **options)
    call = attend(rule, None, kernel, dtype, 0, False, **options)
    output, gradients = differentiate(call, inputs, UPSTREAM)
    assert_close(output, expected.output, LARGE[dtype])
    assert all(np.isfinite(found).all() for found in gradients)
    unseen = ~expected.keep.any(-1).swapaxes(1, 2)
    assert not output[unseen].any()
    assert not gradients[0][unseen].any()


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("size", [1e4, 1e28])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mask", ["none", "window padding"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_large_biases_and_sinks(kernel, mask, sign, size, sinks):
    """A key far above the others takes all; a sink far above the keys, too; far below, nothing."""
    rule, inputs = MASKS[mask](), make_inputs()
    table = np.array([[0, sign * size, 0]] * N, "float32")  # of the key at the query's step
    score, sink = rules.clipped(table), np.full(N, -sign * size / 2, "float32") if sinks else None
    if not serves(kernel, inputs, sinks=sink, mask=rule.mask, bias=score.bias):
        assert kernel in ("banded", "fused")
        return
    expected = Expected(rule, score, inputs, sinks=sink)
    call = attend(rule, score, kernel, "float32", 1, sinks)
    output, gradients = differentiate(call, expected.learned, UPSTREAM)
    assert_close(output, expected.output)
    assert all(np.isfinite(found).all() for found in gradients)
