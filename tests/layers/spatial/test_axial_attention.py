"""Axial attention against its definition: for each cell, those of its line along each side."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import (
    ALiBi,
    AxialAttention2D,
    AxialAttention3D,
    RelativeTable,
    RotaryEmbedding,
    SinusoidalPositions,
    T5RelativeBias,
)
from kattn.masks import Causal
from kattn.ops.attention import observed
from tests import rotary_oracle
from tests.checks import check_layer
from tests.compute import assert_close, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, built, laid_out, maps, weights_of

LAYERS = {2: AxialAttention2D, 3: AxialAttention3D}
HEADS, KEY_DIM, VALUE_DIM = 2, 4, 5


def positions(rank):
    """A bias of the first side and one of the last; none of the one between."""
    return (ALiBi(name="slopes"), *[None] * (rank - 2), RelativeTable((4,), name="positions"))


def make(rank=2, combine="sequence", **options):
    arguments = {
        "key_dim": KEY_DIM,
        "value_dim": VALUE_DIM,
        "combine": combine,
        "position": positions(rank),
        "pattern": Causal(),
        "dropout": 0.3,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "implementation": "dense",
        "seed": 1,
    }
    return LAYERS[rank](HEADS, **{**arguments, **options})


def biases(n, cell, cells, side, weights):
    """What `positions` adds to the scores of a head."""
    distances = np.array([c[side] - cell[side] for c in cells])
    if side == 0:
        return -np.abs(distances) * 2.0 ** (-8 * (n + 1) / HEADS)
    if side == len(cell) - 1:
        return weights["positions/table"][n, distances + 3]
    return np.zeros(len(cells))


def nothing(n, cell, cells, side, weights):
    return np.zeros(len(cells))


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def along(side, x, keep, weights, bias, turn, is_causal):
    """The values that the cells see along one side, and their weights by pairs of cells."""
    qkv = x @ weights[f"qkv_{side}/kernel"] + weights.get(f"qkv_{side}/bias", 0.0)
    q, k, v = np.split(qkv, [HEADS * KEY_DIM, 2 * HEADS * KEY_DIM], axis=-1)
    q, k = (turn(y.reshape(*keep.shape, HEADS, KEY_DIM), side) for y in (q, k))
    v = v.reshape(*keep.shape, HEADS, VALUE_DIM)
    mixed, seen = np.zeros_like(v), {}
    for cell in map(tuple, np.argwhere(keep)):
        line = [(*cell[:side], i, *cell[side + 1 :]) for i in range(keep.shape[side])]
        cells = [c for c in line if keep[c] and (c[side] <= cell[side] or not is_causal)]
        for n in range(HEADS):
            scores = np.array([q[cell][n] @ k[c][n] for c in cells]) / np.sqrt(KEY_DIM)
            row = softmax(scores + bias(n, cell, cells, side, weights))
            seen[cell, n] = dict(zip(cells, row, strict=True))
            mixed[cell][n] = sum(w * v[c][n] for w, c in zip(row, cells, strict=True))
    return mixed.reshape(*keep.shape, HEADS * VALUE_DIM), seen


def attend(
    x,
    keep,
    weights,
    combine,
    *,
    bias=biases,
    turn=lambda heads, side: heads,
    embed=lambda x, side: x,
    is_causal=True,
):
    """The output of one item; and the weights along each side."""
    mixed, seen = [], []
    for side in range(keep.ndim):
        given = mixed[-1] if combine == "sequence" and mixed else x
        found = along(side, embed(given, side), keep, weights, bias, turn, is_causal)
        mixed.append(found[0])
        seen.append(found[1])
    y = mixed[-1] if combine == "sequence" else np.sum(mixed, axis=0)
    return y @ weights["output/kernel"] + weights.get("output/bias", 0.0), seen


CASES = [(2, LAST, "sequence"), (2, FIRST, "sum"), (3, FIRST, "sequence"), (3, LAST, "sum")]


@pytest.mark.parametrize(("rank", "data_format", "combine"), CASES)
def test_matches_oracle(rank, data_format, combine):
    def oracle(x, keep, weights):
        return attend(x, keep, weights, combine)[0]

    gate_checks.check_oracle(functools.partial(make, rank, combine), oracle, rank, data_format)


@pytest.mark.parametrize(("rank", "data_format", "combine"), CASES)
def test_attention_weights(rank, data_format, combine):
    x, keep = maps(rank)
    layer = built(
        functools.partial(make, rank, combine, data_format=data_format), laid_out(x, data_format)
    )
    mask = ops.convert_to_tensor(keep)
    found = result(layer.attention_weights, laid_out(x, data_format), mask=mask)
    assert len(found) == rank
    sides = keep.shape[1:]
    expected = [
        np.zeros((len(x), *sides[:side], *sides[side + 1 :], HEADS, sides[side], sides[side]))
        for side in range(rank)
    ]
    for b, (item, real) in enumerate(zip(np.float64(x), keep, strict=True)):
        for side, seen in enumerate(attend(item, real, weights_of(layer), combine)[1]):
            for (cell, n), row in seen.items():
                others = cell[:side] + cell[side + 1 :]
                for other, weight in row.items():
                    expected[side][b, *others, n, cell[side], other[side]] = weight
    for side, weights in enumerate(found):
        assert_close(weights, expected[side].reshape(-1, HEADS, sides[side], sides[side]))


@pytest.mark.parametrize("combine", ["sequence", "sum"])
def test_one_rotary_embedding_serves_all_sides(combine):
    x, keep = maps(2)

    def rotary(**options):
        position = RotaryEmbedding(base=9.0)
        return make(2, combine, position=position, pattern=None, use_bias=False, **options)

    def turn(heads, side):
        at = np.moveaxis(np.indices(heads.shape[:2])[side][..., None], -1, 0).reshape(-1, 1)
        flat = heads.reshape(1, -1, HEADS, KEY_DIM)
        turns = rotary_oracle.frequencies(KEY_DIM, base=9.0)[None]
        return rotary_oracle.rotate(flat, at, turns).reshape(heads.shape)

    layer = built(rotary, x)
    options = {"bias": nothing, "turn": turn, "is_causal": False}
    items = zip(np.float64(x), keep, strict=True)
    expected = [attend(*item, weights_of(layer), combine, **options)[0] for item in items]
    found = result(layer, x, mask=ops.convert_to_tensor(keep))
    assert_close(found, np.stack(expected) * keep[..., None])


def test_positions_that_are_added_are_those_along_the_side():
    x, keep = maps(2)
    scheme = SinusoidalPositions()
    waves = [result(scheme, np.zeros((1, side, 6), "float32"))[0] for side in keep.shape[1:]]
    layer = built(functools.partial(make, 2, "sum", position=scheme, pattern=None), x)

    def embed(x, side):
        return x + (waves[0][:, None] if side == 0 else waves[1])

    options = {"bias": nothing, "embed": embed, "is_causal": False}
    expected, _ = attend(np.float64(x[0]), keep[0], weights_of(layer), "sum", **options)
    assert_close(result(layer, x[:1]), expected[None])


def test_a_shared_position_layer_has_one_set_of_weights():
    shared, apart = T5RelativeBias(), (T5RelativeBias(), T5RelativeBias())
    counts = []
    for position in (shared, apart):
        layer = AxialAttention2D(2, position=position)
        layer.build((None, 5, 4, 6))
        counts.append(len(layer.weights))
    assert counts == [7, 8]  # three projections with biases, and the tables


@pytest.mark.parametrize(("combine", "later"), [("sequence", 10), ("sum", 6)])
def test_widths_and_weight_names(combine, later):
    layer = AxialAttention2D(2, 4, value_dim=5, combine=combine)
    layer.build((None, 5, 4, 6))
    shapes = {name: weight.shape for name, weight in weights_of(layer).items()}
    assert shapes == {
        "qkv_0/kernel": (6, 26),
        "qkv_0/bias": (26,),
        "qkv_1/kernel": (later, 26),
        "qkv_1/bias": (26,),
        "output/kernel": (10, 6),
        "output/bias": (6,),
    }


def test_a_seeded_initializer_draws_anew_for_each_side():
    seeded = keras.initializers.HeNormal(seed=3)
    layer = AxialAttention3D(1, combine="sum", kernel_initializer=seeded)
    layer.build((None, 3, 2, 4, 6))
    kernels = [weights_of(layer)[f"qkv_{side}/kernel"] for side in range(3)]
    parts = [part for kernel in kernels for part in np.split(kernel, 3, axis=-1)]
    assert len({part.tobytes() for part in parts}) == 9


def test_no_mask_and_no_bias_where_there_is_none():
    layer, calls = AxialAttention2D(2), []
    with observed(calls.append):
        layer(np.ones((2, 5, 3, 4), "float32"))
    assert [(call.batch, call.queries, call.mask, call.bias) for call in calls] == [
        (6, 5, None, None),
        (10, 3, None, None),
    ]


@pytest.mark.parametrize("kernel", ["chunked", "auto"])
def test_kernel_does_not_change_the_result(kernel):
    x, keep = maps(2)
    one = functools.partial(make, value_dim=KEY_DIM)  # JAX's own kernel asks for it
    layer = built(one, x)
    other = built(functools.partial(one, implementation=kernel), x)
    other.set_weights(layer.get_weights())
    mask = ops.convert_to_tensor(keep)
    assert_close(result(other, x, mask=mask), result(layer, x, mask=mask))


def test_layer():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8))
    check_layer(make, [x], fixture="axial_attention", sequence=False, masked=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


def test_bad_input():
    gate_checks.check_bad_input(make)
    with pytest.raises(ValueError, match=r"must be divisible by `num_heads`.*width=6, num_heads=4"):
        AxialAttention2D(4).build((None, 5, 4, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "`combine` must be one of sequence, sum; .*'mean'"),
        ({"position": (None,)}, r"`position` must be one .* a tuple of 2, one.*\(None,\)"),
        ({"position": (None, "rotary")}, r"`position` must be a position layer.*'rotary'"),
        ({"position": "rotary"}, r"`position` must be a position layer.*'rotary'"),
        ({"pattern": "causal"}, r"`pattern` must be a kattn.masks.Mask"),
        ({"num_heads": 0}, "`num_heads` must be an integer >= 1; received: num_heads=0"),
        ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\)"),
        ({"implementation": "quick"}, "`implementation` must be one of auto, .*'quick'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AxialAttention2D(**options)
