"""CoordinateAttention against eq. 4 to 9 of its paper."""

import numpy as np
import pytest
from keras import ops

from kattn.layers import CoordinateAttention
from tests.checks import check_layer
from tests.compute import assert_close, run
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, built, laid_out, maps, sigmoid, weights_of


def make(**options):
    arguments = {
        "min_hidden": 3,
        "momentum": 0.7,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    return CoordinateAttention(2, **{**arguments, **options})


def line_means(x, keep, side):
    """The mean of the real cells at each coordinate of a side, and whether there is one."""
    means, real = np.zeros((x.shape[side], x.shape[-1])), np.zeros(x.shape[side], bool)
    for i in range(x.shape[side]):
        cells = np.take(x, i, axis=side)[np.take(keep, i, axis=side)]
        real[i] = cells.size > 0
        means[i] = cells.reshape(-1, x.shape[-1]).mean(axis=0) if real[i] else 0.0
    return means, real


def dense(z, weights, name):
    return z @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def oracle(x, keep, weights, statistics=None):
    """Hou et al. 2021, eq. 4 to 9, for one item; statistics are a mean and a variance."""
    moving = weights["norm/moving_mean"], weights["norm/moving_variance"]
    mean, variance = statistics or moving
    y = np.where(keep[..., None], x, 0.0)
    for side in range(keep.ndim):
        hidden = dense(line_means(x, keep, side)[0], weights, "reduction")
        hidden = (hidden - mean) / np.sqrt(variance + 1e-5)
        hidden = hidden * weights["norm/gamma"] + weights["norm/beta"]
        hidden = hidden * np.clip(hidden / 6 + 0.5, 0, 1)
        gate = sigmoid(dense(hidden, weights, f"expansion_{side}"))
        shape = [1] * keep.ndim + [x.shape[-1]]
        shape[side] = x.shape[side]
        y = y * gate.reshape(shape)
    return y


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    gate_checks.check_oracle(make, oracle, rank, data_format)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_training_normalises_by_real_lines(rank, data_format):
    x, keep = maps(rank)
    layer = built(make, laid_out(x, data_format), data_format=data_format)
    weights = weights_of(layer)
    hidden = []
    for item, cells in zip(np.float64(x), keep, strict=True):
        for side in range(rank):
            means, real = line_means(item, cells, side)
            hidden.append(dense(means, weights, "reduction")[real])
    hidden = np.concatenate(hidden)
    statistics = hidden.mean(axis=0), hidden.var(axis=0)
    pairs = zip(np.float64(x), keep, strict=True)
    expected = np.stack([oracle(*pair, weights, statistics) for pair in pairs])
    holes = laid_out(np.where(keep[..., None], x, np.float32(np.nan)), data_format)
    found = run(layer, holes, mask=ops.convert_to_tensor(keep), training=True)
    assert_close(found, laid_out(expected, data_format), 1e-4)
    moved = 0.3 * statistics[0] + 0.7 * weights["norm/moving_mean"]
    assert_close(run(ops.copy, layer._norm.moving_mean), moved, 1e-4)
    pairs, weights = zip(np.float64(x), keep, strict=True), weights_of(layer)
    expected = np.stack([oracle(*pair, weights) for pair in pairs])
    found = run(layer, holes, mask=ops.convert_to_tensor(keep))  # by the statistics that moved
    assert_close(found, laid_out(expected, data_format), 1e-4)


def test_one_mask_for_all_items():
    x, keep = maps(2)
    layer, masks = built(make, x), (keep[1:2], np.repeat(keep[1:2], 3, axis=0))
    found = [run(layer, x, mask=ops.convert_to_tensor(mask), training=True) for mask in masks]
    assert_close(*found)


def test_the_hidden_layer_has_eight_units_or_more():
    for channels, hidden in ((6, 8), (512, 16)):
        layer = CoordinateAttention()
        layer.build((None, 5, 4, channels))
        assert weights_of(layer)["reduction/kernel"].shape == (channels, hidden)


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="coordinate_attention", equivariant=True, dropout=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


BAD = [
    ({"ratio": 0}, "`ratio` must be an integer >= 1.*ratio=0"),
    ({"min_hidden": 0}, "`min_hidden` must be an integer >= 1.*min_hidden=0"),
    ({"momentum": 1.0}, "`momentum` must be a fraction in .*momentum=1.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CoordinateAttention(**options)


def test_bad_input():
    gate_checks.check_bad_input(make)
