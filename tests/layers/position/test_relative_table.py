"""RelativeTable against Swin, BoTNet and an interpolation written out, a pair at a time."""

import functools
import math

import keras
import numpy as np
import pytest

from kattn.grid import Grid
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.relative_table import RelativeTable
from kattn.layers.position.score_bias import ScoreBias
from kattn.layers.spatial.self_attention_nd import SelfAttention2D
from kattn.ops import attention
from tests import bias_checks, checks, oracle
from tests.bias_checks import quick
from tests.compute import assert_close, run

SIDES = {1: (5,), 2: (2, 3), 3: (2, 1, 3)}
# The same numbers of cells for other maps.
OTHER = {1: (7,), 2: (3, 4), 3: (3, 2, 2)}


def cells(sides, stride=1):
    """Coordinates of the keys (in queries' cells), row-major."""
    return [
        tuple(x * stride for x in cell)
        for cell in np.ndindex(*(-(-side // stride) for side in sides))
    ]


def share(place, index):
    """Of number `index` in what stands at `place` between numbers."""
    below = math.floor(place + 1e-9)
    part = place - below
    return (1.0 - part if index == below else 0.0) + (part if index == below + 1 else 0.0)


@functools.cache
def shares(old, new, differences):
    """Of each of the R numbers, row-major, in that of a difference on a map of sides `new`."""
    found = np.ones([2 * side - 1 for side in old])
    for indices in np.ndindex(*found.shape):
        for a, index in enumerate(indices):
            place = differences[a] * (old[a] - 1) / max(new[a] - 1, 1) + old[a] - 1
            found[indices] *= share(place, index)
    return found.reshape(-1)


def swin(q, table, sides, at_hand=None, stride=1):
    """Liu et al. 2021, sec. 3.2: a number for each head and difference, (key - query)."""
    at_hand = at_hand or sides
    queries, keys = cells(at_hand), cells(at_hand, stride)
    bias = np.zeros((len(q), q.shape[2], len(queries), len(keys)))
    for i, j in np.ndindex(len(queries), len(keys)):
        differences = tuple(keys[j][a] - queries[i][a] for a in range(len(sides)))
        bias[:, :, i, j] = table @ shares(sides, at_hand, differences)
    return bias


def botnet(q, *tables, sides, at_hand=None, stride=1):
    """Srinivas et al. 2021, fig. 4: q . (r_y + r_x), here over sqrt(D)."""
    at_hand = at_hand or sides
    queries, keys = cells(at_hand), cells(at_hand, stride)
    bias = np.zeros((len(q), q.shape[2], len(queries), len(keys)))
    for i, j in np.ndindex(len(queries), len(keys)):
        vector = 0.0
        for a, table in enumerate(tables):
            difference = keys[j][a] - queries[i][a]
            vector = vector + shares(sides[a:][:1], at_hand[a:][:1], (difference,)) @ table
        bias[:, :, i, j] = q[:, i] @ vector / np.sqrt(q.shape[-1])
    return bias


def rule_of(by_query, **options):
    return functools.partial(botnet if by_query else swin, **options)


# The same object each time: the oracle's gradients are kept for the next kernel.
RULES = {
    (axes, by_query, at_hand): rule_of(by_query, sides=SIDES[axes], at_hand=at_hand)
    for axes in SIDES
    for by_query in (False, True)
    for at_hand in (None, OTHER[axes])
}


def attached(sides, by_query, heads=3, width=4):
    layer = RelativeTable(sides, by_query=by_query)
    layer.attach(width=heads * width, num_heads=heads, key_dim=width)
    checks.shake(layer)
    return layer


@pytest.mark.parametrize("by_query", [False, True])
@pytest.mark.parametrize(
    ("axes", "resized"), [(1, False), (2, False), (3, False), (1, True), (3, True)]
)
def test_alone(rng, axes, by_query, resized):
    at_hand = OTHER[axes] if resized else None
    steps = math.prod(at_hand or SIDES[axes])
    scores = rng.normal(size=(2, 3, steps, steps)).astype("float32")
    q = rng.normal(size=(2, steps, 3, 4)).astype("float32")
    layer = attached(SIDES[axes], by_query)
    weights = bias_checks.weights_of(layer)
    bias = RULES[axes, by_query, at_hand](q.astype(float), *weights)
    assert_close(run(quick(lambda s, q: layer(s, q, sides=at_hand)), scores, q), scores + bias)


@pytest.mark.parametrize("by_query", [False, True])
@pytest.mark.parametrize(
    ("kernel", "axes", "resized"),
    [("dense", 2, True), ("chunked", 2, True), ("banded", 2, True), ("dense", 3, False)],
)
def test_in_attention(monkeypatch, kernel, by_query, axes, resized):
    bias_checks.small_blocks(monkeypatch)
    at_hand = OTHER[axes] if resized else None
    steps = math.prod(at_hand or SIDES[axes])
    layer = attached(SIDES[axes], by_query, heads=2, width=3)
    bias_checks.check_attention(
        layer,
        functools.partial(layer.bias, grid=None if at_hand is None else Grid(at_hand)),
        RULES[axes, by_query, at_hand],
        (2, steps, steps, 2, 3),
        kernel,
    )


@pytest.mark.parametrize("by_query", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(3, 9), (1, 4), (7, 2)])
def test_one_axis_serves_any_steps(rng, by_query, queries, keys):
    """Query i stands at i + (S - T); differences beyond 3 count as 3."""
    scores = rng.normal(size=(2, 3, queries, keys)).astype("float32")
    q = rng.normal(size=(2, queries, 3, 4)).astype("float32")
    layer = attached((4,), by_query)
    table = bias_checks.weights_of(layer)[0]
    expected = scores.astype(float)
    for b, n, i, j in np.ndindex(*scores.shape):
        place = max(-3, min(3, j - (i + keys - queries))) + 3
        expected[b, n, i, j] += q[b, i, n] @ table[place] / 2.0 if by_query else table[n, place]
    assert_close(run(quick(layer), scores, q), expected)


@pytest.mark.parametrize("by_query", [False, True])
def test_one_axis_in_attention(rng, by_query):
    """Three queries against a cache of nine keys."""
    q, k, v, _, _ = bias_checks.qkv(2, 3, 9, 3, 4)
    layer = attached((4,), by_query)
    table = bias_checks.weights_of(layer)[0]
    bias = np.zeros((2, 3, 3, 9))
    for b, n, i, j in np.ndindex(*bias.shape):
        place = max(-3, min(3, j - (i + 6))) + 3
        bias[b, n, i, j] = q[b, i, n] @ table[place] / 2.0 if by_query else table[n, place]
    expected = oracle.attention(q, k, v, bias=bias)[0]
    tensors = [keras.ops.convert_to_tensor(x, "float32") for x in (q, k, v)]
    found = run(quick(lambda q, k, v: attention(q, k, v, bias=layer.bias(q))), *tensors)
    assert_close(found, expected)


@pytest.mark.parametrize("by_query", [False, True])
@pytest.mark.parametrize("sides", [(5,), (4, 3), (3, 1, 4)])
def test_keys_on_every_second_cell(rng, sides, by_query):
    steps, keys = math.prod(sides), len(cells(sides, 2))
    scores = rng.normal(size=(2, 3, steps, keys)).astype("float32")
    q = rng.normal(size=(2, steps, 3, 4)).astype("float32")
    layer = attached(sides, by_query)
    rule = rule_of(by_query, sides=sides, stride=2)
    bias = rule(q.astype(float), *bias_checks.weights_of(layer))
    assert_close(run(quick(lambda s, q: layer(s, q, key_stride=2)), scores, q), scores + bias)
    k = v = rng.normal(size=(2, keys, 3, 4))
    tensors = [keras.ops.convert_to_tensor(x, "float32") for x in (q, k, v)]
    found = run(
        quick(lambda q, k, v: attention(q, k, v, bias=layer.bias(q, Grid(sides, 2)))), *tensors
    )
    assert_close(found, oracle.attention(q, k, v, bias=bias)[0])


def linear(sides, at_hand, coefficients):
    """The sum of coefficient * difference, in units of the farthest, `(R,)` row-major."""
    values = [
        sum(
            c * (index - side + 1) / max(side - 1, 1)
            for c, index, side in zip(coefficients, indices, at_hand, strict=True)
        )
        for indices in np.ndindex(*(2 * side - 1 for side in at_hand))
    ]
    return np.array(values)


RESIZES = [
    ((5,), (9,)),
    ((9,), (4,)),
    ((3, 4), (5, 6)),
    ((7, 7), (12, 12)),
    ((2, 3, 4), (4, 5, 3)),
    ((3, 2), (1, 3)),
]


@pytest.mark.parametrize(("sides", "at_hand"), RESIZES)
def test_linear_functions_are_resized_exactly(sides, at_hand):
    layer = attached(sides, by_query=False, heads=2)
    coefficients = [1.0, -2.5, 0.5][: len(sides)]
    old, new = (linear(sides, shape, coefficients) for shape in (sides, at_hand))
    layer.tables[0].assign(np.stack([old, 3.0 * old + 1.0]))
    found = run(quick(lambda: layer.bias(None, Grid(at_hand)).values))
    assert_close(found, np.stack([new, 3.0 * new + 1.0]), 1e-6)


@pytest.mark.parametrize(("sides", "at_hand"), RESIZES[2:4])
def test_vectors_are_resized_axis_by_axis(rng, sides, at_hand):
    layer = attached(sides, by_query=True)
    q = rng.normal(size=(2, 6, 3, 4)).astype("float32")
    parts = layer.bias(keras.ops.convert_to_tensor(q), Grid(at_hand)).parts()
    for part, table, old, new in zip(
        parts, bias_checks.weights_of(layer), sides, at_hand, strict=True
    ):
        found = np.stack([shares((old,), (new,), (d,)) @ table for d in range(1 - new, new)])
        expected = np.einsum("btnd,rd->bntr", q, found) / 2.0
        assert_close(run(lambda part=part: part.values), expected)


@pytest.mark.parametrize("sides", SIDES.values())
@pytest.mark.parametrize("by_query", [False, True])
def test_equal_sides_change_nothing(rng, sides, by_query):
    layer = attached(sides, by_query)
    q = keras.ops.convert_to_tensor(rng.normal(size=(2, 5, 3, 4)), "float32")
    found, expected = layer.bias(q, Grid(sides)), layer.bias(q)
    assert len(found.parts()) == (len(sides) if by_query else 1)
    for part, other in zip(found.parts(), expected.parts(), strict=True):
        assert_close(run(lambda p=part: p.values), run(lambda p=other: p.values), 1e-7)
    if not by_query:
        np.testing.assert_array_equal(run(lambda: found.values), bias_checks.weights_of(layer)[0])


def test_differences_keep_their_direction(rng):
    """A key below and one to the right of the query; weight by weight."""
    layer = attached((2, 3), by_query=False, heads=1)
    table = np.arange(15.0).reshape(3, 5)  # of (dy + 1, dx + 2)
    layer.tables[0].assign(table.reshape(1, 15))
    found = run(layer, np.zeros((1, 1, 6, 6), "float32"))[0, 0]
    assert found[0, 3] == table[2, 2]
    assert found[3, 0] == table[0, 2]
    assert found[0, 1] == table[1, 3]
    assert found[5, 0] == table[0, 0]


@pytest.mark.parametrize("by_query", [False, True])
def test_a_larger_model_loads_the_weights(rng, tmp_path, by_query):
    """As Swin goes from 224 to 384 pixels."""

    def model(sides):
        position = RelativeTable((2, 3), by_query=by_query, name="table")
        host = bias_checks.BiasHost(position, sides, name="host")
        node = keras.Input((math.prod(sides), 8))
        return keras.Model(node, host(node))

    small, large = model((2, 3)), model((4, 5))
    checks.shake(small.get_layer("host"))
    small.save_weights(tmp_path / "small.weights.h5")
    large.load_weights(tmp_path / "small.weights.h5")
    weights = bias_checks.weights_of(small.get_layer("host"))
    for net, sides in ((small, (2, 3)), (large, (4, 5))):
        x = rng.normal(size=(2, math.prod(sides), 8)).astype("float32")
        rule = rule_of(by_query, sides=(2, 3), at_hand=sides)
        assert_close(net.predict(x, verbose=0), bias_checks.host_oracle(x, rule, weights))


@pytest.mark.parametrize("by_query", [False, True])
def test_weights(by_query):
    layer = RelativeTable((3, 2), by_query=by_query, regularizer=keras.regularizers.L2(0.5))
    layer.attach(width=12, num_heads=3, key_dim=4)
    weights = layer.weights
    layer.attach(width=12, num_heads=3, key_dim=4)
    assert all(a is b for a, b in zip(layer.weights, weights, strict=True))
    found = {w.name: tuple(w.shape) for w in weights}
    assert found == ({"table_0": (5, 4), "table_1": (3, 4)} if by_query else {"table": (3, 15)})
    assert len(layer.losses) == len(weights)
    assert all(0.0 < np.abs(w).max() <= 0.04 for w in bias_checks.weights_of(layer))
    name, have, other = ("key_dim", 4, 3) if by_query else ("num_heads", 3, 4)
    with pytest.raises(
        ValueError, match=f"for {name}={have}; it cannot be shared with {name}={other}"
    ):
        layer.attach(width=12, num_heads=4, key_dim=3)


@pytest.mark.parametrize(
    "initializer",
    [
        None,
        keras.initializers.RandomNormal(seed=3),
        keras.initializers.RandomNormal(),
    ],
)
def test_axes_begin_apart(initializer):
    layer = RelativeTable((3, 3), by_query=True, initializer=initializer)
    layer.attach(width=12, num_heads=3, key_dim=4)
    rows, columns = bias_checks.weights_of(layer)
    assert np.abs(rows - columns).max() > 1e-3


@pytest.mark.parametrize(("axes", "by_query"), [(2, False), (2, True), (1, True)])
def test_in_a_layer(tmp_path, axes, by_query):
    position = RelativeTable(SIDES[axes], by_query=by_query)
    steps = math.prod(SIDES[axes])
    bias_checks.check_in_a_layer(position, RULES[axes, by_query, None], steps, tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("by_query", [False, True])
def test_precision_inside_a_layer(policy, by_query):
    position = RelativeTable((2, 3), by_query=by_query)
    bias_checks.check_inside(position, RULES[2, by_query, None], 6, policy)


@pytest.mark.parametrize("by_query", [False, True])
def test_unknown_sizes(rng, by_query):
    """The steps of a grid are known; the batch is not, nor are the steps on one axis."""
    for sides, steps in (((2, 3), 6), ((4,), None)):
        nodes = [keras.Input((3, steps, steps)), keras.Input((steps, 3, 4))]
        layer = RelativeTable(sides, by_query=by_query)
        model = keras.Model(nodes, layer(nodes[0], query=nodes[1]))
        checks.shake(layer)
        size = steps or 4
        scores = rng.normal(size=(2, 3, size, size)).astype("float32")
        q = rng.normal(size=(2, size, 3, 4)).astype("float32")
        bias = rule_of(by_query, sides=sides)(q.astype(float), *bias_checks.weights_of(layer))
        assert_close(model.predict([scores, q], verbose=0), scores + bias)


def make(**options):
    off = {"sides": (2, 3), "initializer": "he_normal", "regularizer": "l2"}
    return RelativeTable(**{**off, **options})


def make_by_query(**options):
    return make(by_query=True, **options)


FLAGS = {"sequence": False, "masked": False, "dropout": False}


@pytest.mark.parametrize("by_query", [False, True])
def test_a_map_without_cells(by_query):
    layer = SelfAttention2D(2, position=RelativeTable((4, 4), by_query=by_query), key_stride=2)
    x = np.zeros((2, 0, 3, 8), "float32")
    layer.build((2, 4, 4, 8))
    assert run(layer, x).shape == x.shape


def test_battery(rng):
    checks.check_layer(make, [rng.normal(size=(2, 3, 6, 6))], fixture="relative_table", **FLAGS)


def test_battery_by_query(rng):
    inputs = [rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(2, 6, 3, 4))]
    checks.check_layer(make_by_query, inputs, **FLAGS)


def test_it_is_relative():
    assert issubclass(RelativeTable, ScoreBias)
    assert not issubclass(RelativeTable, InputPosition)


@pytest.mark.parametrize("sides", [(), (2, 3, 4, 5), (2, 0), (2.0, 3), 5, (True, 3)])
def test_bad_sides(sides):
    with pytest.raises(ValueError, match="`sides` must be 1 to 3 integers >= 1; received: sides="):
        RelativeTable(sides)
    with pytest.raises(ValueError, match="`sides` must be 1 to 3 integers >= 1; received: sides="):
        attached((2, 3), by_query=False)(np.ones((1, 3, 6, 6), "float32"), sides=sides)


def test_a_grid_must_be_known():
    with pytest.raises(
        ValueError, match=r"`sides` must be 1 to 3 int.*received: sides=\(None, 3\)"
    ):
        attached((2, 3), by_query=False).bias(None, Grid((None, 3)))


def test_bad_input():
    scores, q = np.ones((2, 3, 6, 6), "float32"), np.ones((2, 6, 3, 4), "float32")
    layer = attached((2, 3), by_query=True)
    with pytest.raises(ValueError, match=r"`scores` must have rank 4.*\(3, 6, 6\)"):
        RelativeTable((2, 3))(scores[0])
    for some in (layer, RelativeTable((2, 3), by_query=True)):
        with pytest.raises(ValueError, match=r"`query` must be given, because.*: query=None"):
            some(scores)
    with pytest.raises(ValueError, match=r"`query` must have rank 4.*D=4.*\(2, 6, 3, 3\)"):
        layer(scores, q[..., :3])
    with pytest.raises(ValueError, match=r"where `scores` has \(B, N, T, S\).*\(2, 3, 6, 4\)"):
        layer(scores, q.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"as many sides as that of the.*sides=\(6,\), .*\(2, 3\)"):
        layer(scores, q, sides=(6,))
    with pytest.raises(ValueError, match=r"`key_stride` must be an integer >= 1.*key_stride=0"):
        layer(scores, q, key_stride=0)
    with pytest.raises(ValueError, match=r"A grid of \(3, 4\) with key_stride 1 has 12 steps.*T=6"):
        layer(scores, q, sides=(3, 4))
    with pytest.raises(ValueError, match=r"has no weights yet.*'early'"):
        RelativeTable((2, 3), name="early").bias(q)
