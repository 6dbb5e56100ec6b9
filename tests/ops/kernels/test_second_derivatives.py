"""Second derivatives through the kernels that bring a gradient of their own."""

import keras
import numpy as np
import pytest

from kattn import biases, masks
from kattn.ops import attention
from kattn.ops.kernels import banded, frames, tiles
from tests.compute import assert_close, second_derivatives

T = 9
CASES = {
    "chunked": {"mask": masks.Causal(), "dropout_rate": 0.25, "seed": 3},
    "banded": {"mask": masks.Causal() & masks.Window(3), "dropout_rate": 0.25, "seed": 3},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 4)
    monkeypatch.setattr(frames, "NARROWEST", 3)
    monkeypatch.setattr(banded, "MANY", 1)


@pytest.mark.parametrize("kernel", ["dense", "chunked"])
def test_of_two_keys(kernel, monkeypatch):
    """With keys 1, 2 and values 0, 1 a query q gives sigmoid(q)."""
    monkeypatch.setattr(tiles, "BLOCK", 1)
    q = np.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    k, v = (np.array(x, "float32").reshape(1, 2, 1, 1) for x in ([1, 2], [0, 1]))

    def function(q):
        return attention(q, *map(keras.ops.convert_to_tensor, (k, v)), implementation=kernel)

    (found,) = second_derivatives(function, [q], np.ones_like(q), [np.ones_like(q)])
    s = 1 / (1 + np.exp(-q))
    assert_close(found, s * (1 - s) * (1 - 2 * s))


@pytest.mark.parametrize("kernel", CASES)
def test_as_those_of_dense(kernel):
    """In all inputs at once, with all that changes scores: dense is differentiated as it stands."""
    rng = np.random.default_rng(0)
    shapes = [(2, T, 4, 3), (2, T, 2, 3), (2, T, 2, 5), (4,), (4, 5)]
    inputs = [rng.normal(size=shape).astype("float32") for shape in shapes]
    directions = [rng.normal(size=shape).astype("float32") for shape in shapes]
    upstream = rng.normal(size=(2, T, 4, 5)).astype("float32")
    real = np.arange(T) < np.array([[T], [T - 3]])
    options = {**CASES[kernel], "softcap": 2.0}
    options["mask"] = options["mask"] & masks.Padding(real)

    def function(implementation):
        def run(q, k, v, sinks, table):
            own = {"bias": biases.Clipped(table), "sinks": sinks, "implementation": implementation}
            return attention(q, k, v, **own, **options)

        return run

    found = second_derivatives(function(kernel), inputs, upstream, directions)
    expected = second_derivatives(function("dense"), inputs, upstream, directions)
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, 1e-4)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others take no fused kernel on CPU")
@pytest.mark.parametrize("options", [{}, {"mask": masks.Causal()}, {"bias": np.ones((T, T), "f4")}])
def test_of_the_fused_kernel_names_those_that_have_one(options):
    # On a GPU no kernel serves a width that is no multiple of 4.
    x = np.random.default_rng(0).normal(size=(1, T, 2, 4)).astype("float32")

    def function(q, k, v):
        return attention(q, k, v, implementation="fused", **options)

    with pytest.raises(ValueError, match="no second derivative; use implementation='chunked'"):
        second_derivatives(function, [x] * 3, np.ones_like(x), [np.ones_like(x)] * 3)
