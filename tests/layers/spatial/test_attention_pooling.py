"""AttentionPooling against multi-head attention of its paper, one query at a time."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import AttentionPooling
from tests import checks
from tests.checks import ready, shake, with_mask
from tests.compute import assert_close, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import (
    CHANNELS,
    FIRST,
    LAST,
    built,
    laid_out,
    maps,
    weights_of,
)

OPTIONS = {
    "key_dim": 4,
    "value_dim": 5,
    "dropout": 0.3,
    "seed": 1,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}


def make(num_queries=3, **options):
    return AttentionPooling(2, num_queries, **{**OPTIONS, **options})


def mean_of_cells(**options):
    return make(None, query="mean", **options)


def one_query(**options):
    return make(None, use_bias=False, **options)


def dense(x, weights, name):
    return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def oracle(x, keep, weights, heads=2, key_dim=4, value_dim=5):
    """The vectors and the weights of one item."""
    cells, real = x.reshape(-1, x.shape[-1]), keep.reshape(-1)
    queries = weights.get("queries")
    if queries is None:
        queries = cells[real].mean(axis=0, keepdims=True) if real.any() else np.zeros((1, len(x.T)))
    seen = np.zeros((heads, len(queries), len(cells)))
    if not real.any():
        return np.zeros((len(queries), x.shape[-1])), seen
    q = dense(queries, weights, "query")
    k, v = np.split(dense(cells, weights, "key_value"), [heads * key_dim], axis=-1)
    mixed = np.zeros((len(queries), heads * value_dim))
    for n, t in np.ndindex(heads, len(queries)):
        head = slice(n * key_dim, (n + 1) * key_dim)
        scores = np.exp(k[real, head] @ q[t, head] / np.sqrt(key_dim))
        seen[n, t, real] = scores / scores.sum()
        value_head = slice(n * value_dim, (n + 1) * value_dim)
        mixed[t, value_head] = seen[n, t, real] @ v[real, value_head]
    return dense(mixed, weights, "output"), seen


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", [make, one_query, mean_of_cells])
def test_matches_oracle(kind, rank, data_format):
    x, keep = maps(rank)
    layer = built(kind, laid_out(x, data_format), data_format=data_format)
    weights = weights_of(layer)
    for real in (np.ones_like(keep), keep):
        items = [oracle(*item, weights) for item in zip(np.float64(x), real, strict=True)]
        expected, seen = (np.stack(parts) for parts in zip(*items, strict=True))
        expected = expected if kind is make else expected[:, 0]
        holes = laid_out(np.where(real[..., None], x, np.float32(np.nan)), data_format)
        if real.all():
            assert_close(result(layer, holes), expected)
        mask = ops.convert_to_tensor(real)
        assert_close(result(layer, holes, mask=mask), expected)
        assert_close(result(layer.attention_weights, holes, mask=mask), seen)
        assert_close(result(with_mask(layer, mask), holes), expected)


def test_an_explicit_mask_is_joined_with_that_of_keras():
    x, keep = maps(2)
    layer = built(make, x)
    other = np.ones_like(keep)
    other[0, :2] = False
    masked = with_mask(layer, ops.convert_to_tensor(keep))
    found = result(masked, x, mask=ops.convert_to_tensor(other))
    assert_close(found, result(layer, x, mask=ops.convert_to_tensor(keep & other)))


def test_default_widths():
    layer = AttentionPooling(3)
    layer.build((None, 5, 4, 6))
    shapes = {name: weight.shape for name, weight in weights_of(layer).items()}
    assert shapes == {
        "queries": (1, 6),
        "query/kernel": (6, 6),
        "query/bias": (6,),
        "key_value/kernel": (6, 12),
        "key_value/bias": (12,),
        "output/kernel": (6, 6),
        "output/bias": (6,),
    }


BATTERY = (
    checks.check_config,
    checks.check_sublayers,
    checks.check_precision,
    checks.check_training,
    checks.check_compiled,
    checks.check_saving,
    checks.check_dropout,
    checks.check_unknown_sizes,
)


@pytest.mark.parametrize("check", BATTERY)
def test_battery(check):
    check(make, [np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")])


def test_saved_elsewhere():
    checks.check_fixture(make, "attention_pooling")


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_unknown_sides(data_format):
    shape = (None, None, CHANNELS) if data_format == LAST else (CHANNELS, None, None)
    layer, inputs = make(data_format=data_format), keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    shake(layer)
    assert model.output_shape == (None, 3, CHANNELS)
    for sides in ((5, 4), (3, 7)):
        x = np.random.default_rng(0).normal(size=(2, *sides, CHANNELS)).astype("float32")
        x = laid_out(x, data_format)
        assert_close(model.predict(x, verbose=0), result(layer, x))


def test_queries_are_no_cells(rng):
    """The mask ends here, and the order of cells changes nothing."""
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer = ready(make, [x])
    inputs = keras.Input((5, 8))
    pooled = layer(keras.layers.Masking()(inputs))
    assert getattr(pooled, "_keras_mask", None) is None
    assert_close(result(layer, x[:, [3, 1, 0, 4, 2]]), result(layer, x))


BAD = [
    ({"num_queries": 0}, "`num_queries` must be an integer >= 1.*num_queries=0"),
    ({"query": "first"}, "`query` must be one of learned, mean; received: query='first'"),
    ({"query": "mean"}, "`num_queries` must be None where .*num_queries=3, query='mean'"),
    ({"dropout": 1.0}, "`dropout` must be a fraction in .*dropout=1.0"),
    ({"key_dim": 0}, "`key_dim` must be an integer >= 1.*key_dim=0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_input():
    gate_checks.check_bad_input(make)
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=6, num_heads=4"):
        AttentionPooling(4).build((None, 5, 4, 6))
