"""Biases block by block are the whole bias, and so are the gradients of their arrays."""

import keras
import numpy as np
import pytest

from kattn import biases
from kattn.ops import masking
from kattn.ops.kernels import tiled_biases, tiles
from kattn.ops.kernels.tiled_biases import TiledBiases
from kattn.ops.kernels.tiles import Tiles
from kattn.spans import Span
from tests.compute import assert_close, run

QUERIES, KEYS, HEADS = 7, 10, 4  # in blocks of 4 and 4: the last of each is filled up


def make(name):
    """A bias with its arrays, and the sum over (b, i, j) that each array's gradient is."""
    rng = np.random.default_rng(0)
    shape = {
        "scores": (1, HEADS, QUERIES, KEYS),
        "scores of keys": (2, 1, 1, KEYS),
        "slopes": (HEADS,),
        "by query": (2, HEADS, QUERIES, 5),
    }[name]
    kind = {"slopes": biases.ALiBi, "by query": biases.Clipped}.get(name, biases.Dense)
    return kind(keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32")))


@pytest.mark.parametrize("name", ["scores", "scores of keys", "slopes", "by query"])
def test_blocks_and_gradients(monkeypatch, name):
    monkeypatch.setattr(tiles, "BLOCK", 4)
    part, cut = make(name), Tiles.make(QUERIES, KEYS)
    more = (cut.row_blocks * cut.rows - QUERIES, cut.column_blocks * cut.columns - KEYS)
    padded = tiled_biases.cut(part, cut, *more)
    without = masking.without_arrays(padded)
    tiled = TiledBiases(cut, [without], [masking.arrays_of(padded)], 2, 2)
    dz = np.random.default_rng(1).normal(size=(2, HEADS, QUERIES, KEYS)).astype("float32")
    dz = np.pad(dz, [(0, 0), (0, 0), (0, more[0]), (0, more[1])])
    whole = part.block(Span(0, QUERIES), Span(0, KEYS), KEYS - QUERIES)
    whole = np.broadcast_to(run(lambda: whole), (2, HEADS, QUERIES, KEYS))
    sums, gradients = np.zeros(dz.shape), tiled.zero_gradients()
    for i in range(cut.row_blocks):
        for j in range(cut.column_blocks):
            (q, n), (k, m) = cut.steps(i, j)
            own = (..., slice(q, q + n), slice(k, k + m))
            bias = run(tiled.block, i, j)
            bias = np.broadcast_to(bias, (2, 2, 2, n, m)).reshape(2, HEADS, n, m)
            sums[own] = bias
            local = keras.ops.convert_to_tensor(dz[own].reshape(2, 2, 2, n, m))
            gradients = tiled.add(gradients, local, i, j)
    assert_close(sums[..., :QUERIES, :KEYS], whole)
    ((gradient,),) = run(lambda: tiled.join(gradients))
    assert_close(_as_the_array(name, gradient), _expected(name, dz[..., :QUERIES, :KEYS]), 1e-5)


def _as_the_array(name, gradient):
    if name == "by query":  # which is in blocks of queries
        gradient = np.moveaxis(gradient, 0, 2)
        return gradient.reshape(2, HEADS, -1, 5)[:, :, :QUERIES]
    return gradient[..., :QUERIES, :KEYS] if name.startswith("scores") else gradient


def _expected(name, dz):
    distance = np.arange(KEYS) - (np.arange(QUERIES) + KEYS - QUERIES)[:, None]
    if name == "scores":
        return dz.sum(0, keepdims=True)
    if name == "scores of keys":
        return dz.sum((1, 2), keepdims=True)
    if name == "slopes":
        return -(dz * abs(distance)).sum((0, 2, 3))
    places = np.clip(distance, -2, 2) + 2
    return np.stack([(dz * (places == n)).sum(-1) for n in range(5)], axis=-1)
