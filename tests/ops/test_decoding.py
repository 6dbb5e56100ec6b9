import itertools

import numpy as np
import pytest
from keras import ops

from kattn import biases, masks
from kattn.ops import KVCache, RingCache, decode, empty_cache
from tests import oracle
from tests.compute import assert_close, run

SIZES = {"heads": 2, "key_dim": 6, "value_dim": 3, "dtype": "float32"}


def inputs(rng, steps=7, key_heads=2):
    """B=2, N=4, K=2, D=6, Dv=3."""
    sizes = (2, steps, 4, 6), (2, steps, key_heads, 6), (2, steps, key_heads, 3)
    return [rng.normal(size=size).astype("float32") for size in sizes]


@pytest.mark.parametrize("kind", [KVCache, RingCache])
@pytest.mark.parametrize("cuts", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 5, 7], [0, 1, 4, 7]])
def test_matches_oracle(rng, kind, cuts):
    q, k, v = inputs(rng)
    bias, sinks = rng.normal(size=(4, 9)).astype("float32"), rng.normal(size=4).astype("float32")
    keep = oracle.causal(7, 7) & oracle.window(7, 7, 3)
    offsets = np.arange(7)[None] - np.arange(7)[:, None] + 4  # key - query, within +-4
    whole = np.broadcast_to(bias[:, np.clip(offsets, 0, 8)], (2, 4, 7, 7))
    expected, _ = oracle.attention(
        q, k, v, keep=np.broadcast_to(keep, whole.shape), bias=whole, scale=0.7, softcap=1.5,
        sinks=sinks,
    )  # fmt: skip
    cache = empty_cache(kind, 2, 3 if kind is RingCache else 8, **SIZES)
    found = []
    for start, stop in itertools.pairwise(cuts):
        piece = [ops.convert_to_tensor(x[:, start:stop]) for x in (q, k, v)]
        y, cache = decode(
            *piece, cache, mask=masks.Causal() & masks.Window(3), scale=0.7, softcap=1.5,
            bias=biases.Clipped(ops.convert_to_tensor(bias)), sinks=ops.convert_to_tensor(sinks),
        )  # fmt: skip
        found.append(run(ops.copy, y))
    assert_close(np.concatenate(found, axis=1), expected)


@pytest.mark.parametrize("key_heads", [2, 4])  # PyTorch's own kernel takes it without groups
def test_causal_where_no_mask_is_given(rng, key_heads):
    q, k, v = map(ops.convert_to_tensor, inputs(rng, 4, key_heads))
    y, cache = decode(q, k, v, empty_cache(KVCache, 2, 4, **{**SIZES, "heads": key_heads}))
    keep = np.broadcast_to(oracle.causal(4, 4), (2, 4, 4, 4))
    arrays = [run(ops.copy, x) for x in (q, k, v)]
    assert_close(run(ops.copy, y), oracle.attention(*arrays, keep=keep)[0])
    assert run(ops.copy, cache.length).tolist() == [4, 4]


@pytest.mark.parametrize("key_heads", [2, 4])
def test_padding_gives_zero(rng, key_heads):
    q, k, v = map(ops.convert_to_tensor, inputs(rng, 3, key_heads))
    real = np.array([[0, 1, 1], [0, 0, 0]], bool)
    cache = empty_cache(KVCache, 2, 4, **{**SIZES, "heads": key_heads})
    y, cache = decode(q, k, v, cache, real=ops.convert_to_tensor(real))
    y = run(ops.copy, y)
    assert not y[~real].any()
    assert np.abs(y[real]).min() > 0
    assert run(ops.copy, cache.length).tolist() == [2, 0]


def test_bad_input(rng, device):
    q, k, v = map(ops.convert_to_tensor, inputs(rng, 3))
    if device.startswith("cpu"):  # to read a length of a GPU would cost a step of decoding
        with pytest.raises(ValueError, match=r"room for all steps.*length=2, steps=\[3, 3\]"):
            decode(q, k, v, empty_cache(KVCache, 2, 2, **SIZES))
    with pytest.raises(ValueError, match=r"same batch, key heads.*cache=\(3, 2, 6, 3\)"):
        decode(q, k, v, empty_cache(KVCache, 3, 5, **SIZES))
    with pytest.raises(ValueError, match=r"multiple of the number of key heads"):
        decode(q[:, :, :3], k, v, empty_cache(KVCache, 2, 5, **SIZES))
