"""CBAM against eq. 1 to 3 of its paper."""

import numpy as np
import pytest

from kattn.layers import CBAM
from tests.checks import check_layer
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, sigmoid


def make(**options):
    arguments = {
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    return CBAM(2, 3, **{**arguments, **options})


def oracle(x, keep, weights):
    """The gates of the channels, then those of the cells, cell by cell."""
    x = np.where(keep[..., None], x, 0.0)
    if not keep.any():
        return x
    logits = 0.0
    for z in (x[keep].mean(axis=0), x[keep].max(axis=0)):
        hidden = z @ weights["reduction/kernel"] + weights.get("reduction/bias", 0.0)
        hidden = np.maximum(hidden, 0) @ weights["expansion/kernel"]
        logits = logits + hidden + weights.get("expansion/bias", 0.0)
    y = x * sigmoid(logits)
    kernel = weights["convolution/kernel"][..., 0]  # (k, ..., 2)
    gates = np.zeros(keep.shape)
    for cell in np.ndindex(keep.shape):
        total = float(np.sum(weights.get("convolution/bias", 0.0)))
        for tap in np.ndindex(kernel.shape[:-1]):
            seen = tuple(c + t - n // 2 for c, t, n in zip(cell, tap, kernel.shape, strict=False))
            is_inside = all(0 <= s < n for s, n in zip(seen, keep.shape, strict=True))
            if is_inside and keep[seen]:
                total += kernel[tap] @ [y[seen].mean(), y[seen].max()]
        gates[cell] = sigmoid(total)
    return y * gates[..., None]


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    gate_checks.check_oracle(make, oracle, rank, data_format)


def test_without_biases_and_with_a_kernel_wider_than_the_map():
    def without(**options):
        return CBAM(3, use_bias=False, **options)  # of 7 x 7 cells

    gate_checks.check_oracle(without, oracle, 2, LAST)
    layer = without()
    layer.build((None, 5, 4, 6))
    assert [tuple(w.shape) for w in layer.weights] == [(6, 2), (2, 6), (7, 7, 2, 1)]


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="cbam", dropout=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


BAD = [
    ((0,), "`ratio` must be an integer >= 1.*ratio=0"),
    ((16, 0), "`kernel_size` must be an integer >= 1.*kernel_size=0"),
    ((16, 4), "`kernel_size` must be odd; received: kernel_size=4"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        CBAM(*args)


def test_bad_input():
    gate_checks.check_bad_input(make)
