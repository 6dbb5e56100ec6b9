"""Window attention against its definition: for each cell, those of its window by coordinates."""

import functools

import numpy as np
import pytest
from keras import ops

from kattn.layers import (
    RelativeTable,
    RotaryEmbedding,
    SinusoidalPositions,
    WindowAttention1D,
    WindowAttention2D,
    WindowAttention3D,
)
from kattn.ops.attention import observed
from tests import rotary_oracle
from tests.checks import check_layer
from tests.compute import assert_close, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, built, maps, weights_of

LAYERS = {1: WindowAttention1D, 2: WindowAttention2D, 3: WindowAttention3D}
# Of the sides of `maps` one is divided, the second of three is in one window, and cells of both
# ends of a side are computed together.
WINDOWS, SHIFTS = {1: (4,), 2: (2, 3), 3: (2, 3, 2)}, {1: (2,), 2: (1, 2), 3: (1, 1, 1)}
HEADS, KEY_DIM, VALUE_DIM = 2, 4, 3


def make(rank=2, partition="windows", **options):
    window = WINDOWS[rank]
    arguments = {
        "window_size": window,
        "key_dim": KEY_DIM,
        "value_dim": VALUE_DIM,
        "shift": SHIFTS[rank] if partition == "windows" else 0,
        "position": RelativeTable(window, name="positions"),
        "partition": partition,
        "dropout": 0.3,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "implementation": "dense",
        "seed": 1,
    }
    return LAYERS[rank](HEADS, **{**arguments, **options})


def place(cell, sides, partition):
    """The window that holds a cell, on each side, and where in the window the cell stands."""
    rank = len(sides)
    group, at = [], []
    for c, side, window, shift in zip(cell, sides, WINDOWS[rank], SHIFTS[rank], strict=True):
        if partition == "grid":
            apart = int(np.ceil(side / window))
            group.append(c % apart)
            at.append(c // apart)
        else:
            moved = c - shift if side > window else c
            group.append(moved // window)
            at.append(moved % window)
    return tuple(group), tuple(at)


def seen_by(cell, keep, partition):
    group, _ = place(cell, keep.shape, partition)
    return [
        c for c in np.ndindex(keep.shape) if keep[c] and group == place(c, keep.shape, partition)[0]
    ]


def bias_of(table, query, key, window):
    """The number of the table for the difference of two places in a window."""
    sides = [2 * w - 1 for w in window]
    differences = [k - q + w - 1 for q, k, w in zip(query, key, window, strict=True)]
    return table[np.ravel_multi_index(differences, sides)]


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def heads_of(x, weights, turn):
    qkv = x @ weights["qkv/kernel"] + weights.get("qkv/bias", 0.0)
    q, k, v = np.split(qkv, [HEADS * KEY_DIM, 2 * HEADS * KEY_DIM], axis=-1)
    q, k = (y.reshape(*y.shape[:-1], HEADS, KEY_DIM) for y in (q, k))
    return turn(q), turn(k), v.reshape(*v.shape[:-1], HEADS, VALUE_DIM)


def attend(x, keep, weights, partition, turn=lambda heads: heads):
    """The output of one item; and its weights, by the cell that looks and the cell it sees."""
    q, k, v = heads_of(x, weights, turn)
    mixed, maps_of = np.zeros((*keep.shape, HEADS, VALUE_DIM)), {}
    for cell in map(tuple, np.argwhere(keep)):
        cells = seen_by(cell, keep, partition)
        for n in range(HEADS):
            scores = np.array([q[cell][n] @ k[c][n] for c in cells]) / np.sqrt(KEY_DIM)
            if "positions/table" in weights:
                at = [place(c, keep.shape, partition)[1] for c in (cell, *cells)]
                table, window = weights["positions/table"][n], WINDOWS[keep.ndim]
                scores += [bias_of(table, at[0], other, window) for other in at[1:]]
            maps_of[cell, n] = dict(zip(cells, softmax(scores), strict=True))
            mixed[cell][n] = sum(weight * v[c][n] for c, weight in maps_of[cell, n].items())
    flat = mixed.reshape(*keep.shape, HEADS * VALUE_DIM)
    return flat @ weights["output/kernel"] + weights.get("output/bias", 0.0), maps_of


CASES = [(1, FIRST, "windows"), (2, LAST, "windows"), (3, FIRST, "windows")]
CASES += [(1, LAST, "grid"), (2, FIRST, "grid"), (3, LAST, "grid")]


@pytest.mark.parametrize(("rank", "data_format", "partition"), CASES)
def test_matches_oracle(rank, data_format, partition):
    def oracle(x, keep, weights):
        return attend(x, keep, weights, partition)[0]

    layer = functools.partial(make, rank, partition)
    gate_checks.check_oracle(layer, oracle, rank, data_format)


@pytest.mark.parametrize("partition", ["windows", "grid"])
def test_attention_weights(partition):
    x, keep = maps(2)
    layer = built(functools.partial(make, 2, partition), x)
    window, counts = WINDOWS[2], (3, 2)
    expected = np.zeros((len(x), *counts, HEADS, *window, *window))
    for b, (item, real) in enumerate(zip(np.float64(x), keep, strict=True)):
        for (cell, n), row in attend(item, real, weights_of(layer), partition)[1].items():
            (i, j), at = place(cell, real.shape, partition)
            for other, weight in row.items():
                # Window -1, of the cells before the shift, is computed with the last.
                expected[b, i, j, n, *at, *place(other, real.shape, partition)[1]] = weight
    expected = expected.reshape(-1, HEADS, 6, 6)
    mask = ops.convert_to_tensor(keep)
    assert_close(result(layer.attention_weights, x, mask=mask), expected)


@pytest.mark.parametrize("partition", ["windows", "grid"])
def test_rotary_positions_are_those_in_the_window(partition):
    x, keep = maps(2)

    def rotary(**options):
        position = RotaryEmbedding(base=9.0, axes=2)
        return make(2, partition, position=position, use_bias=False, **options)

    turns = np.stack([rotary_oracle.frequencies(2, base=9.0)] * 2)
    at = np.array([place(c, keep.shape[1:], partition)[1] for c in np.ndindex(keep.shape[1:])])

    def turn(heads):
        flat = heads.reshape(1, len(at), HEADS, KEY_DIM)
        return rotary_oracle.rotate(flat, at, turns).reshape(heads.shape)

    layer = built(rotary, x)
    items = zip(np.float64(x), keep, strict=True)
    expected = [attend(*item, weights_of(layer), partition, turn)[0] for item in items]
    found = result(layer, x, mask=ops.convert_to_tensor(keep))
    assert_close(found, np.stack(expected) * keep[..., None])


def test_positions_that_are_added_are_those_on_the_map():
    x, _ = maps(2)
    scheme = SinusoidalPositions(axes=2, grid=(5, 4))
    layer = built(functools.partial(make, position=scheme), x)
    found = result(layer, x)
    layer.position = None
    moved = result(scheme, x.reshape(3, 20, 6)).reshape(x.shape)
    assert_close(found, result(lambda x: layer(x), moved))  # `layer` itself has been compiled


@pytest.mark.parametrize(
    ("options", "has_mask"),
    [
        ({}, False),
        ({"partition": "grid"}, False),
        ({"shift": 1}, True),
        ({"window_size": 4}, True),
        ({"window_size": 6, "shift": 5}, False),  # one window, which is not shifted
    ],
)
def test_no_mask_where_nothing_is_padded_or_shifted(options, has_mask):
    layer, calls = WindowAttention2D(HEADS, **{"window_size": (2, 3), **options}), []
    with observed(calls.append):
        layer(np.ones((2, 6, 6, 4), "float32"))
    assert (calls[0].mask is not None) == has_mask


@pytest.mark.parametrize("kernel", ["chunked", "auto"])
def test_kernel_does_not_change_the_result(kernel):
    x, keep = maps(2)
    layer = built(functools.partial(make, value_dim=KEY_DIM), x)  # JAX's own kernel asks for it
    other = built(functools.partial(make, value_dim=KEY_DIM, implementation=kernel), x)
    other.set_weights(layer.get_weights())
    mask = ops.convert_to_tensor(keep)
    assert_close(result(other, x, mask=mask), result(layer, x, mask=mask))


def test_default_widths():
    layer = WindowAttention2D(3)
    layer.build((None, 5, 4, 6))
    shapes = {name: weight.shape for name, weight in weights_of(layer).items()}
    assert shapes == {
        "qkv/kernel": (6, 18),
        "qkv/bias": (18,),
        "output/kernel": (6, 6),
        "output/bias": (6,),
    }
    assert layer.window_size == (7, 7)


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(functools.partial(make, 1), [x])


def test_layer_of_images():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8))
    check_layer(make, [x], fixture="window_attention", sequence=False, masked=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


def test_unknown_sides_that_are_in_one_window():
    layer = functools.partial(make, window_size=5, shift=3)
    gate_checks.check_unknown_sides(layer, LAST)


def test_bad_input():
    gate_checks.check_bad_input(make)
    with pytest.raises(ValueError, match=r"must be divisible by `num_heads`.*width=6, num_heads=4"):
        WindowAttention2D(4).build((None, 5, 4, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 0}, r"`window_size` must be an integer >= 1, or a tuple of 2.*size=0"),
        ({"window_size": (2, 3, 4)}, r"`window_size` must be .* tuple of 2, one.*\(2, 3, 4\)"),
        ({"window_size": (2, 3.0)}, r"`window_size` must be an integer >= 1.*\(2, 3\.0\)"),
        ({"shift": -1}, r"`shift` must be an integer >= 0, or a tuple of 2.*shift=-1"),
        ({"shift": (1,)}, r"`shift` must be an integer >= 0, or a tuple of 2.*shift=\(1,\)"),
        (
            {"window_size": (2, 3), "shift": 2},
            r"`shift` must be less than `window_size`.*shift=\(2, 2\), window_size=\(2, 3\)",
        ),
        (
            {"partition": "grid", "shift": (0, 1)},
            r"`shift` must be 0 with partition=\"grid\".*shift=\(0, 1\)",
        ),
        ({"partition": "rows"}, "`partition` must be one of windows, grid; .*'rows'"),
        ({"num_heads": 0}, "`num_heads` must be an integer >= 1; received: num_heads=0"),
        ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\)"),
        ({"implementation": "quick"}, "`implementation` must be one of auto, .*'quick'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention2D(**options)
