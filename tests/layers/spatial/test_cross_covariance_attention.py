"""CrossCovarianceAttention against eq. 3 of its paper, one channel at a time."""

import numpy as np
import pytest
from keras import ops

from kattn.layers import CrossCovarianceAttention
from tests.checks import check_layer, with_mask
from tests.compute import assert_close, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import CHANNELS, FIRST, LAST, built, laid_out, maps

HEADS, KEY_DIM, EPSILON = 2, 5, 0.2


def make(**options):
    arguments = {
        "key_dim": KEY_DIM,
        "epsilon": EPSILON,
        "dropout": 0.3,
        "seed": 1,
        "kernel_initializer": "he_normal",
        "scale_initializer": "random_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    return CrossCovarianceAttention(HEADS, **{**arguments, **options})


def channel(rows, weights, part, n, i):
    """Channel i of head n of the queries (part 0), keys or values, at each of these cells."""
    column = (part * HEADS + n) * KEY_DIM + i
    return rows @ weights["qkv/kernel"][:, column] + weights["qkv/bias"][column]


def of_length_one(row):
    return row / np.sqrt(row @ row + EPSILON)


def both(x, keep, weights):
    """El-Nouby et al. 2021, eq. 3, for one item: the output and the attention weights."""
    rows = x[keep]  # of real cells
    mixed, seen = np.zeros((len(rows), HEADS, KEY_DIM)), np.zeros((HEADS, KEY_DIM, KEY_DIM))
    for n, i in np.ndindex(HEADS, KEY_DIM):
        query = of_length_one(channel(rows, weights, 0, n, i))
        keys = [of_length_one(channel(rows, weights, 1, n, j)) for j in range(KEY_DIM)]
        scores = np.exp([weights["scale"][n] * (query @ key) for key in keys])
        seen[n, i] = scores / scores.sum()
        for j in range(KEY_DIM):
            mixed[:, n, i] += seen[n, i, j] * channel(rows, weights, 2, n, j)
    y = np.zeros_like(x)
    y[keep] = (
        mixed.reshape(len(rows), HEADS * KEY_DIM) @ weights["output/kernel"]
        + weights["output/bias"]
    )
    return y, seen


def oracle(x, keep, weights):
    return both(x, keep, weights)[0]


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    gate_checks.check_oracle(make, oracle, rank, data_format)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_attention_weights(data_format):
    x, keep = maps(2)
    layer = built(make, laid_out(x, data_format), data_format=data_format)
    weights = gate_checks.weights_of(layer)
    pairs = zip(np.float64(x), keep, strict=True)
    expected = np.stack([both(item, cells, weights)[1] for item, cells in pairs])
    assert_close(expected[2], np.full((HEADS, KEY_DIM, KEY_DIM), 1 / KEY_DIM))  # no real cell
    holes = laid_out(np.where(keep[..., None], x, np.float32(np.nan)), data_format)
    mask = ops.convert_to_tensor(keep)
    assert_close(result(layer.attention_weights, holes, mask=mask), expected)
    assert_close(result(with_mask(layer.attention_weights, mask), holes), expected)


def test_default_widths():
    layer = CrossCovarianceAttention(3, use_bias=False)
    layer.build((None, 5, 4, 6))
    weights = gate_checks.weights_of(layer)
    shapes = {name: weight.shape for name, weight in weights.items()}
    assert shapes == {"qkv/kernel": (6, 18), "scale": (3,), "output/kernel": (6, 6)}
    assert (weights["scale"] == 1).all()


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="cross_covariance_attention", equivariant=True)


def test_many_cells_in_half_precision(rng):
    """Products of a channel with itself are sums over all cells, of 4096 small numbers here."""
    x = rng.normal(size=(1, 64, 64, 6)).astype("float32")
    layer, half = built(make, x), built(make, x, dtype="mixed_float16")
    half.set_weights(layer.get_weights())
    expected = result(layer.attention_weights, x)
    assert_close(result(half.attention_weights, x), expected, 1e-2)
    assert_close(np.float32(result(half, x)), result(layer, x), 1e-2)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


BAD = [
    ({"num_heads": 0}, r"`num_heads` must be an integer >= 1.*num_heads=0"),
    ({"key_dim": 0}, r"`key_dim` must be an integer >= 1.*key_dim=0"),
    ({"epsilon": 0.0}, r"`epsilon` must be a finite number above 0.*epsilon=0.0"),
    ({"dropout": 1.0}, r"`dropout` must be a fraction in .*dropout=1.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CrossCovarianceAttention(**options)


def test_bad_input():
    gate_checks.check_bad_input(make)
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=6, num_heads=4"):
        CrossCovarianceAttention(4).build((None, 5, 4, CHANNELS))
