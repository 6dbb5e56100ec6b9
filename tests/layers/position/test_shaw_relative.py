"""ShawRelative against eq. 4 of the paper, a pair at a time."""

import functools

import keras
import numpy as np
import pytest

from kattn.grid import Grid
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.score_bias import ScoreBias
from kattn.layers.position.shaw_relative import ShawRelative
from kattn.ops import attention
from tests import bias_checks, checks
from tests.bias_checks import quick
from tests.compute import assert_close, run

SIZES = (2, 5, 7, 3, 4)  # B, T, S, N, D


def rule(q, table, keys=7, limit=2):
    """Shaw et al. 2018, the second term of eq. 4, and the clip of sec. 3.2."""
    batch, queries, heads, width = q.shape
    bias = np.zeros((batch, heads, queries, keys))
    for b, n, i, j in np.ndindex(*bias.shape):
        distance = max(-limit, min(limit, j - (i + keys - queries)))
        bias[b, n, i, j] = q[b, i, n] @ table[limit + distance] / np.sqrt(width)
    return bias


FAR = functools.partial(rule, limit=9)


def attached(limit=2, width=4):
    layer = ShawRelative(limit)
    layer.attach(width=3 * width, num_heads=3, key_dim=width)
    checks.shake(layer)
    return layer


@pytest.mark.parametrize("limit", [1, 2, 9])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 12), (9, 4)])
def test_alone(rng, limit, queries, keys):
    scores = rng.normal(size=(2, 3, queries, keys)).astype("float32")
    q = rng.normal(size=(2, queries, 3, 5)).astype("float32")
    layer = ShawRelative(limit)
    layer(scores, q)
    checks.shake(layer)
    bias = rule(q.astype(float), *bias_checks.weights_of(layer), keys=keys, limit=limit)
    assert_close(run(quick(layer), scores, q), scores + bias)


@pytest.mark.parametrize("kernel", bias_checks.KERNELS)
@pytest.mark.parametrize(("limit", "oracle"), [(2, rule), (9, FAR)])
def test_in_attention(monkeypatch, kernel, limit, oracle):
    bias_checks.small_blocks(monkeypatch)
    layer = attached(limit)
    bias_checks.check_attention(layer, layer.bias, oracle, SIZES, kernel)


def test_it_is_the_key_with_a_vector_added(rng):
    """Eq. 4 as it is written: q_i . (k_j + a_ij) / sqrt(D), one table for all heads."""
    q, k, v, _, _ = bias_checks.qkv(2, 5, 5, 3, 4)
    layer = attached()
    table = bias_checks.weights_of(layer)[0]
    expected = np.zeros_like(q)
    for b, n, i in np.ndindex(2, 3, 5):
        keys = [k[b, j, n] + table[2 + max(-2, min(2, j - i))] for j in range(5)]
        powers = np.exp(np.array([q[b, i, n] @ key for key in keys]) / 2.0)
        expected[b, i, n] = powers / powers.sum() @ v[b, :, n]
    q, k, v = (keras.ops.convert_to_tensor(x, "float32") for x in (q, k, v))
    assert_close(run(attention, q, k, v, bias=layer.bias(q)), expected)


def test_weights():
    layer = ShawRelative(3, initializer="ones", regularizer=keras.regularizers.L2(0.5))
    layer.attach(width=12, num_heads=3, key_dim=4)
    table = layer.table
    layer.attach(width=20, num_heads=5, key_dim=4)
    assert layer.table is table
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("table", (7, 4))]
    np.testing.assert_array_equal(run(keras.ops.convert_to_tensor, table), np.ones((7, 4)))
    assert_close(run(keras.ops.convert_to_tensor, layer.losses[0]), 14.0)
    with pytest.raises(
        ValueError, match=r"was built for key_dim=4; it cannot be shared with key_dim=3\."
    ):
        layer.attach(width=12, num_heads=4, key_dim=3)


def test_in_a_layer(tmp_path):
    bias_checks.check_in_a_layer(ShawRelative(2), rule, 7, tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_precision_inside_a_layer(policy):
    bias_checks.check_inside(ShawRelative(2), rule, 7, policy)


def test_unknown_sizes(rng):
    nodes = [keras.Input((3, None, None)), keras.Input((None, 3, 4))]
    layer = ShawRelative(2)
    model = keras.Model(nodes, layer(*nodes))
    checks.shake(layer)
    for batch, queries, keys in ((2, 4, 4), (1, 2, 6)):
        scores = rng.normal(size=(batch, 3, queries, keys)).astype("float32")
        q = rng.normal(size=(batch, queries, 3, 4)).astype("float32")
        bias = rule(q.astype(float), *bias_checks.weights_of(layer), keys=keys)
        assert_close(model.predict([scores, q], verbose=0), scores + bias)


def test_a_symbolic_query():
    bias = attached().bias(keras.KerasTensor((None, None, 3, 4)))
    assert bias.values.shape == (None, 3, None, 5)


def make(**options):
    off = {"max_distance": 2, "initializer": "he_normal", "regularizer": "l2"}
    return ShawRelative(**{**off, **options})


def test_battery(rng):
    flags = {"sequence": False, "masked": False, "dropout": False}
    inputs = [rng.normal(size=(2, 3, 5, 7)), rng.normal(size=(2, 5, 3, 4))]
    checks.check_layer(make, inputs, fixture="shaw_relative", **flags)


def test_it_is_relative():
    assert issubclass(ShawRelative, ScoreBias)
    assert not issubclass(ShawRelative, InputPosition)


@pytest.mark.parametrize("limit", [0, 2.0, None])
def test_bad_arguments(limit):
    message = f"`max_distance` must be an integer >= 1; received: max_distance={limit}"
    with pytest.raises(ValueError, match=message):
        ShawRelative(limit)


def test_bad_input():
    scores, q = np.ones((2, 3, 5, 5), "float32"), np.ones((2, 5, 3, 4), "float32")
    with pytest.raises(ValueError, match=r"`scores` must have rank 4.*\(3, 5, 5\)"):
        ShawRelative(2)(scores[0], q)
    for layer in (ShawRelative(2), attached()):
        with pytest.raises(ValueError, match=r"`query` must be given, because.*query=None"):
            layer(scores)
    with pytest.raises(ValueError, match=r"ShawRelative.*sequences only; use RelativeTable.*Grid"):
        attached().bias(q, Grid((1, 5)))
    with pytest.raises(ValueError, match=r"`query` must have rank 4.*\(5, 3, 4\)"):
        ShawRelative(2)(scores, q[0])
    with pytest.raises(ValueError, match=r"`query` must have rank 4.*D=4.*\(2, 5, 3, 3\)"):
        attached()(scores, q[..., :3])
    with pytest.raises(ValueError, match=r"where `scores` has \(B, N, T, S\).*\(2, 3, 5, 4\)"):
        ShawRelative(2)(scores, q.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"has no weights yet.*'early'"):
        ShawRelative(2, name="early").bias(q)
