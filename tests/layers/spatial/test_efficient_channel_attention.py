"""EfficientChannelAttention against eq. 9 and 12 of its paper."""

import numpy as np
import pytest

from kattn.layers import EfficientChannelAttention
from tests.checks import check_layer
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, sigmoid


def make(**options):
    arguments = {
        "gamma": 1.0,
        "b": 0.5,
        "kernel_initializer": "he_normal",
        "kernel_regularizer": "l2",
    }
    return EfficientChannelAttention(**{"kernel_size": 5, **arguments, **options})


def oracle(x, keep, weights):
    """The gate of channel c is that of the k means around it, beyond which there are zeros."""
    channels = x.shape[-1]
    z = x[keep].mean(axis=0) if keep.any() else np.zeros(channels)
    kernel = weights["convolution/kernel"][:, 0, 0]
    gates = np.zeros(channels)
    for c in range(channels):
        for j, weight in enumerate(kernel):
            neighbour = c + j - len(kernel) // 2
            if 0 <= neighbour < channels:
                gates[c] += weight * z[neighbour]
    return np.where(keep[..., None], x, 0.0) * sigmoid(gates)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    gate_checks.check_oracle(make, oracle, rank, data_format)


# (log2(C) + 1) / 2 is 1, 2.5, 3.5, 4, 4.5, 5.5 for the first ones.
SIZES = [
    ({}, {2: 1, 16: 3, 64: 3, 128: 5, 256: 5, 1024: 5, 2048: 7}),
    ({"gamma": 1.0, "b": 0.0}, {1: 1, 4: 3, 8: 3, 64: 7}),
]


@pytest.mark.parametrize(("options", "sizes"), SIZES)
def test_size_of_the_kernel(options, sizes):
    """That of the authors' code, where it is not given."""
    for channels, size in sizes.items():
        layer = EfficientChannelAttention(**options)
        layer.build((None, 4, channels))
        assert layer.count_params() == size


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    name = "efficient_channel_attention"
    check_layer(make, [x], fixture=name, equivariant=True, dropout=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


BAD = [
    ({"kernel_size": 0}, "`kernel_size` must be an integer >= 1.*kernel_size=0"),
    ({"kernel_size": 4}, "`kernel_size` must be odd; received: kernel_size=4"),
    ({"gamma": 0.0}, "`gamma` must be a finite number above 0.*gamma=0.0"),
    ({"b": -1.0}, "`b` must be a finite number >= 0.*b=-1.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientChannelAttention(**options)


def test_bad_input():
    gate_checks.check_bad_input(make)
