"""T5RelativeBias against the paper's buckets, a pair at a time."""

import functools

import keras
import numpy as np
import pytest

from kattn.grid import Grid
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.score_bias import ScoreBias
from kattn.layers.position.t5_relative_bias import T5RelativeBias
from tests import bias_checks, checks, oracle
from tests.bias_checks import quick
from tests.compute import assert_close, run

SIZES = (2, 5, 7, 3, 4)  # B, T, S, N, D
OPTIONS = {
    True: {"num_buckets": 8, "max_distance": 6},
    False: {"num_buckets": 5, "max_distance": 6, "bidirectional": False},
}


def rule(q, table, keys=7, num_buckets=8, max_distance=6, bidirectional=True):
    batch, queries, heads, _ = q.shape
    bias = np.zeros((batch, heads, queries, keys))
    for b, n, i, j in np.ndindex(*bias.shape):
        relative = j - i - (keys - queries)
        bucket = oracle.t5_bucket(relative, num_buckets, max_distance, bidirectional)
        bias[b, n, i, j] = table[n, bucket]
    return bias


RULES = {way: functools.partial(rule, **options) for way, options in OPTIONS.items()}


def attached(bidirectional, heads=3):
    layer = T5RelativeBias(**OPTIONS[bidirectional])
    layer.attach(width=4 * heads, num_heads=heads, key_dim=4)
    checks.shake(layer)
    return layer


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 12), (9, 4)])
def test_alone(rng, bidirectional, queries, keys):
    scores = rng.normal(size=(2, 3, queries, keys)).astype("float32")
    layer = T5RelativeBias(**OPTIONS[bidirectional])
    layer(scores)
    checks.shake(layer)
    bias = RULES[bidirectional](
        np.zeros((2, queries, 3, 4)), *bias_checks.weights_of(layer), keys=keys
    )
    assert_close(run(quick(layer), scores), scores + bias)


def test_known_buckets():
    """Raffel et al. 2019, sec. 2.1: 32 numbers, alike from distance 128 on. One way: 16 for a
    distance each, as many to 128."""
    layer = T5RelativeBias(bidirectional=False)
    layer.attach(width=1, num_heads=1, key_dim=1)
    layer.table.assign(np.arange(32)[None])
    found = run(layer, np.zeros((1, 1, 1, 200), "float32"))[0, 0, 0, ::-1]
    np.testing.assert_array_equal(found[:16], np.arange(16))
    np.testing.assert_array_equal(np.unique(found[16:128]), np.arange(16, 32))
    np.testing.assert_array_equal(found[128:], 31)
    assert (np.diff(found) >= 0).all()
    layer = T5RelativeBias()
    layer.attach(width=1, num_heads=1, key_dim=1)
    layer.table.assign(np.arange(32)[None])
    found = run(layer, np.zeros((1, 1, 3, 3), "float32"))[0, 0]
    np.testing.assert_array_equal(found, [[0, 17, 18], [1, 0, 17], [2, 1, 0]])


@pytest.mark.parametrize("kernel", bias_checks.KERNELS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_in_attention(monkeypatch, kernel, bidirectional):
    bias_checks.small_blocks(monkeypatch)
    layer = attached(bidirectional)
    bias_checks.check_attention(layer, layer.bias, RULES[bidirectional], SIZES, kernel)


def test_weights():
    layer = T5RelativeBias(6, 4, initializer="ones", regularizer=keras.regularizers.L2(0.5))
    layer.attach(width=12, num_heads=3, key_dim=4)
    table = layer.table
    layer.attach(width=24, num_heads=3, key_dim=8)
    assert layer.table is table
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("table", (3, 6))]
    np.testing.assert_array_equal(run(keras.ops.convert_to_tensor, table), np.ones((3, 6)))
    assert_close(run(keras.ops.convert_to_tensor, layer.losses[0]), 9.0)
    with pytest.raises(
        ValueError, match=r"was built for num_heads=3; it cannot be shared with num_heads=4\."
    ):
        layer.attach(width=12, num_heads=4, key_dim=3)


def test_the_table_is_small_at_first():
    layer = T5RelativeBias(64, 100)
    layer.attach(width=64, num_heads=32, key_dim=2)
    assert 0.015 < bias_checks.weights_of(layer)[0].std() < 0.02


def test_layers_share_a_table(rng, tmp_path):
    position = T5RelativeBias(**OPTIONS[True])
    node = keras.Input((None, 8))
    first, second = bias_checks.BiasHost(position), bias_checks.BiasHost(position)
    model = keras.Model(node, second(first(node)))
    assert len(model.weights) == 1
    checks.shake(first)
    table = bias_checks.weights_of(position)
    x = rng.normal(size=(2, 7, 8)).astype("float32")
    expected = bias_checks.host_oracle(x, rule, table)
    expected = bias_checks.host_oracle(expected, rule, table)
    assert_close(model.predict(x, verbose=0), expected)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.weights) == 1
    assert_close(again.predict(x, verbose=0), expected)


def test_in_a_layer(tmp_path):
    bias_checks.check_in_a_layer(T5RelativeBias(**OPTIONS[True]), rule, 7, tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_precision_inside_a_layer(policy):
    bias_checks.check_inside(T5RelativeBias(**OPTIONS[True]), rule, 7, policy)


def test_unknown_sizes(rng):
    node = keras.Input((3, None, None))
    layer = T5RelativeBias(**OPTIONS[True])
    model = keras.Model(node, layer(node))
    checks.shake(layer)
    for shape in ((2, 3, 4, 4), (1, 3, 2, 6)):
        scores = rng.normal(size=shape).astype("float32")
        bias = rule(
            np.zeros((shape[0], shape[2], 3, 1)), *bias_checks.weights_of(layer), keys=shape[3]
        )
        assert_close(model.predict(scores, verbose=0), scores + bias)


def make(*, bidirectional=False, **options):
    off = {"initializer": "he_normal", "regularizer": "l2", **OPTIONS[bidirectional]}
    return T5RelativeBias(**{**off, **options})


@pytest.mark.parametrize("bidirectional", [False, True])
def test_battery(rng, bidirectional):
    # All distances to 6 and beyond, both ways, so that each number takes part.
    flags = {"sequence": False, "masked": False, "dropout": False}
    if not bidirectional:
        flags["fixture"] = "t5_relative_bias"
    layer = functools.partial(make, bidirectional=bidirectional)
    checks.check_layer(layer, [rng.normal(size=(2, 3, 9, 9))], **flags)


def test_it_is_relative():
    assert issubclass(T5RelativeBias, ScoreBias)
    assert not issubclass(T5RelativeBias, InputPosition)


BAD = {
    "buckets": ({"num_buckets": 2}, "`num_buckets` must be an integer >= 4.*num_buckets=2"),
    "buckets, one way": (
        {"num_buckets": 1, "bidirectional": False},
        "`num_buckets` must be an integer >= 2.*num_buckets=1",
    ),
    "odd": ({"num_buckets": 7}, "must be even where half.*num_buckets=7, bidirectional=True"),
    "fraction": ({"num_buckets": 8.0}, r"`num_buckets` must be an integer.*num_buckets=8\.0"),
    "distance": ({"max_distance": 0}, "`max_distance` must be an integer >= 1.*max_distance=0"),
    "short": (
        {"num_buckets": 32, "max_distance": 8},
        "`max_distance` must be more than the 8 buckets.*max_distance=8, num_buckets=32",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        T5RelativeBias(**options)


def test_bad_input():
    with pytest.raises(ValueError, match=r"`scores` must have rank 4.*\(3, 4, 5\)"):
        T5RelativeBias()(np.ones((3, 4, 5), "float32"))
    with pytest.raises(ValueError, match=r"has no weights yet.*'early'"):
        T5RelativeBias(name="early").bias(np.ones((1, 2, 3, 4)))
    with pytest.raises(
        ValueError, match=r"T5Relative.*sequences only; use RelativeTable.*grid=Grid"
    ):
        attached(True).bias(np.ones((1, 6, 3, 4)), Grid((2, 3)))
    with pytest.raises(ValueError, match=r"`values` of a bias.*N=2.*received: .*3"):
        attached(True)(np.ones((1, 2, 5, 5), "float32"))
