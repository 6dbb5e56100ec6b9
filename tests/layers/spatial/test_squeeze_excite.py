"""SqueezeExcite against eq. 2 to 4 of its paper."""

import numpy as np
import pytest

from kattn.layers import SqueezeExcite
from tests.checks import check_layer
from tests.compute import assert_close, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, built, maps, sigmoid, weights_of


def make(**options):
    arguments = {
        "activation": "tanh",
        "gate_activation": "sigmoid",
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    return SqueezeExcite(2, **{**arguments, **options})


def dense(z, weights, name):
    return z @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def oracle(x, keep, weights, activation=np.tanh, gate=sigmoid):
    """Hu et al. 2017, eq. 2 to 4, for one item."""
    z = x[keep].mean(axis=0) if keep.any() else np.zeros(x.shape[-1])
    gates = gate(dense(activation(dense(z, weights, "reduction")), weights, "expansion"))
    return np.where(keep[..., None], x, 0.0) * gates


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    gate_checks.check_oracle(make, oracle, rank, data_format)


def test_defaults_and_other_activations():
    x, keep = maps(2)
    cases = (
        ({}, lambda h: np.maximum(h, 0), sigmoid),
        (
            {"activation": "silu", "gate_activation": "hard_sigmoid", "use_bias": False},
            lambda h: h * sigmoid(h),
            lambda h: np.clip(h / 6 + 0.5, 0, 1),
        ),
    )
    for options, activation, gate in cases:
        layer = built(lambda **more: SqueezeExcite(3, **more), x, **options)
        weights = weights_of(layer)
        assert len(weights) == (2 if options else 4)
        items = zip(np.float64(x), np.ones_like(keep), strict=True)
        expected = [oracle(*item, weights, activation, gate) for item in items]
        assert_close(result(layer, x), np.stack(expected))


def test_the_hidden_layer_has_at_least_one_unit():
    x, _ = maps(1)
    layer = built(lambda: SqueezeExcite(), x)
    assert weights_of(layer)["reduction/kernel"].shape == (6, 1)


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="squeeze_excite", equivariant=True, dropout=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


def test_bad_input():
    gate_checks.check_bad_input(make)
    with pytest.raises(ValueError, match=r"`ratio` must be an integer >= 1.*ratio=0"):
        SqueezeExcite(0)
