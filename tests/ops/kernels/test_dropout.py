"""Dropout by counter: its draws, and that every kernel makes the same ones forward and backward."""

import functools
import types

import keras
import numpy as np
import pytest

from kattn import masks
from kattn.ops import attention
from kattn.ops.kernels import dropout, frames, tiles
from tests import oracle
from tests.compute import assert_close, compiled, differentiate, run

SHAPE = (2, 4, 1024, 1280)  # B, N, T, S: 10^7 draws
RATES = (0.1, 0.5)


def keep(seed, rate, shape=SHAPE, groups=1):
    """Which weights stay, bool, `(B, N, T, S)`."""
    batch, heads, queries, keys = shape
    call = types.SimpleNamespace(
        query=np.zeros((batch, queries, heads, 1)),
        key=np.zeros((batch, keys, heads // groups, 1)),
        key_heads=heads // groups,
        groups=groups,
        dropout_rate=rate,
        seed=seed,
    )

    def draw():
        rows, columns = dropout.counters(call)
        ones = keras.ops.ones((batch, heads // groups, groups, queries, keys))
        return dropout.drop(dropout.Draws(rows, columns, rate), ones)

    return run(draw).reshape(shape) > 0.5


@functools.lru_cache(maxsize=2)
def standardized(seed, rate):
    """Draws of mean 0 and variance 1, if they are what they should be."""
    return ((keep(seed, rate) - (1 - rate)) / np.sqrt(rate * (1 - rate))).astype("float32")


def assert_standard_normal(x):
    """Many sums of draws, or one: neither their squares nor a single one is too large or small."""
    x = np.atleast_1d(x).ravel()
    assert np.abs(x).max() < 5.0 + np.sqrt(2 * np.log(x.size))
    assert abs((x**2).mean() - 1.0) < 6.0 * np.sqrt(3.0 / x.size)


def correlation(a, b):
    """Standard normal where a and b are independent."""
    return (a * b).mean(dtype="float64") * np.sqrt(a.size)


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="the integers are the same on every backend: test_draws_match_integers_of_python",
)
@pytest.mark.parametrize("rate", RATES)
class TestDraws:
    def test_rate(self, rate):
        kept = keep(3, rate)
        assert abs(kept.mean() - (1 - rate)) < 1e-3
        assert abs(correlation(standardized(3, rate), 1.0 + 0.0 * kept)) < 5.0

    def test_rate_in_every_cell(self, rate):
        """Chi-square over blocks of 16 x 16, over rows, and over columns."""
        x = standardized(3, rate)
        batch, heads, queries, keys = SHAPE
        cells = x.reshape(batch, heads, queries // 16, 16, keys // 16, 16).sum((3, 5)) / 16.0
        assert_standard_normal(cells)
        assert_standard_normal(x.sum(-1) / np.sqrt(keys))
        assert_standard_normal(x.sum(-2) / np.sqrt(queries))

    @pytest.mark.parametrize("lag", [1, 2, 3, 8, 16, 512])
    def test_no_serial_correlation_along_rows_and_columns(self, rate, lag):
        x = standardized(3, rate)
        assert abs(correlation(x[..., lag:], x[..., :-lag])) < 5.0
        assert abs(correlation(x[..., lag:, :], x[..., :-lag, :])) < 5.0
        assert abs(correlation(x[..., lag:, lag:], x[..., :-lag, :-lag])) < 5.0

    def test_rows_and_columns_are_independent_in_pairs(self, rate):
        """Every pair of rows, and every pair of columns, of one head."""
        x = standardized(3, rate)[1, 2]
        for draws in (x, x.T):
            pairs = (draws @ draws.T / np.sqrt(draws.shape[1]))[np.triu_indices(len(draws), 1)]
            assert abs(pairs.var() - 1.0) < 0.02
            assert np.abs(pairs).max() < 9.0

    def test_corners_of_rectangles_are_independent(self, rate):
        """What a product of a number of the row and one of the column could not hide."""
        x = standardized(3, rate)
        corners = x[..., :-1, :-1] * x[..., 1:, 1:], x[..., 1:, :-1] * x[..., :-1, 1:]
        assert abs(correlation(*corners)) < 6.0

    def test_heads_and_items_are_independent(self, rate):
        x = standardized(3, rate)
        for a, b in ((x[:, 1:], x[:, :-1]), (x[:, 2:], x[:, :-2]), (x[:1], x[1:])):
            assert abs(correlation(a, b)) < 5.0
            # Nor are they the same a few steps apart.
            assert abs(correlation(a[..., 1:, :], b[..., :-1, :])) < 5.0

    @pytest.mark.parametrize("other", [2, 4, 5, 1000])
    def test_seeds_are_independent(self, rate, other):
        assert abs(correlation(standardized(3, rate), standardized(other, rate))) < 5.0

    def test_calls_are_independent(self, rate):
        generator = keras.random.SeedGenerator(5)
        first, second = (keep(generator, rate) - (1.0 - rate) for _ in range(2))
        assert abs(correlation(first, second)) < 5.0 * rate * (1 - rate)


def test_queries_and_keys_are_not_hashed_alike():
    x = standardized(3, 0.5)[..., :1024]
    assert abs(correlation(x, np.swapaxes(x, -1, -2))) < 5.0 * np.sqrt(2.0)


def lowbias32(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 16)


@pytest.mark.parametrize("rate", [0.25, 1e-9, 1 - 1e-12])
@pytest.mark.parametrize("groups", [1, 2])
def test_draws_match_integers_of_python(monkeypatch, groups, rate):
    seed = (2**31 - 5, 77)
    tensor = functools.partial(keras.ops.convert_to_tensor, seed, "int32")
    monkeypatch.setattr(dropout, "draw_seed", lambda _: tensor())
    drawn = keep(None, rate, (2, 4, 5, 6), groups)
    for b, n, i, j in np.ndindex(drawn.shape):
        head = lowbias32(lowbias32((4 * b + n + seed[0]) % 2**32) ^ seed[1])
        row, column = (
            lowbias32((lowbias32((step + head) % 2**32) + head) % 2**32) | 1
            for step in (2 * i, 2 * j + 1)
        )
        product = row * column % 2**32
        signed = product - 2**32 if product >= 2**31 else product
        assert drawn[b, n, i, j] == (signed >= min(round(rate * 2**32), 2**32 - 1) - 2**31)


WINDOW = masks.Causal() & masks.Window(4)
T, S = 13, 17


def inputs():
    """B=2, N=4, K=2, D=3; values as wide as there are keys."""
    rng = np.random.default_rng(1)
    shapes = (2, T, 4, 3), (2, S, 2, 3), (2, S, 2, S)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


@pytest.fixture(params=[(5, 3), (7, 8), (512, 64)], ids=str)
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", request.param[0])
    monkeypatch.setattr(frames, "NARROWEST", request.param[1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kernel", ["dense", "chunked", "banded"])
def test_same_seed_same_weights_in_every_kernel(kernel):
    """The weights, read off with the identity as values, are dropped where the draws say so."""
    q, k, _ = inputs()
    identity = np.broadcast_to(np.eye(S, dtype="float32")[None, :, None], (2, S, 2, S))
    options = {"mask": WINDOW, "dropout_rate": 0.25, "seed": 6}
    found = run(attention, q, k, identity, implementation=kernel, **options)
    seen = np.broadcast_to(oracle.causal(T, S) & oracle.window(T, S, 4), (2, 4, T, S))
    _, weights = oracle.attention(q, k, identity, keep=seen)
    kept = keep(6, 0.25, (2, 4, T, S), groups=2)
    assert_close(found, np.moveaxis(weights * kept / 0.75, 1, 2))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kernel", ["dense", "chunked", "banded"])
def test_gradients_drop_what_the_output_dropped(kernel):
    """Against the equations in NumPy, with the same draws."""
    q, k, v = inputs()
    upstream = np.random.default_rng(2).normal(size=(2, T, 4, S))
    options = {"mask": WINDOW, "dropout_rate": 0.25, "seed": 6, "implementation": kernel}
    output, gradients = differentiate(lambda *x: attention(*x, **options), [q, k, v], upstream)
    seen = np.broadcast_to(oracle.causal(T, S) & oracle.window(T, S, 4), (2, 4, T, S))
    _, p = oracle.attention(q, k, v, keep=seen)
    scale = keep(6, 0.25, (2, 4, T, S), groups=2) / 0.75
    keys, values = (np.repeat(x, 2, axis=2).astype("float64") for x in (k, v))
    assert_close(output, np.einsum("bnts,bsnd->btnd", p * scale, values))
    dp = np.einsum("btnd,bsnd->bnts", upstream, values) * scale
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(3)
    dk = np.einsum("bnts,btnd->bsnd", ds, q.astype("float64"))
    dv = np.einsum("bnts,btnd->bsnd", p * scale, upstream)
    assert_close(gradients[0], np.einsum("bnts,bsnd->btnd", ds, keys), 1e-4)
    assert_close(gradients[1], dk.reshape(2, S, 2, 2, 3).sum(3), 1e-4)
    assert_close(gradients[2], dv.reshape(2, S, 2, 2, S).sum(3), 1e-4)


# TorchDynamo takes half a minute for each.
@pytest.mark.parametrize(
    "kernel", ["chunked"] if keras.backend.backend() == "torch" else ["dense", "chunked", "banded"]
)
def test_compiled(kernel):
    options = {"mask": WINDOW, "dropout_rate": 0.25, "seed": 6, "implementation": kernel}
    tensors = [keras.ops.convert_to_tensor(x) for x in inputs()]
    function = compiled(lambda *x: attention(*x, **options))
    assert_close(run(function, *tensors), run(attention, *tensors, **options))


@pytest.mark.parametrize("seed", [0, 1])
def test_no_structure_between_rows_and_columns(seed):
    """The mask is made of a number for each row and each column; nothing of that may be seen.

    The largest singular value of n x n independent numbers of variance 1 is 2 sqrt(n).
    """
    size = 512
    draws = keep(seed, 0.1, shape=(1, 1, size, size))[0, 0]
    x = (draws - draws.mean()) / draws.std()
    largest = np.linalg.svd(x, compute_uv=False)[0]
    assert 0.94 < largest / (2 * np.sqrt(size)) < 1.04
