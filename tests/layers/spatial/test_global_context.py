"""GlobalContext against eq. 6 of its paper."""

import numpy as np
import pytest

from kattn.layers import GlobalContext
from tests.checks import check_layer
from tests.compute import result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, maps, sigmoid


def make(fusion="both", **options):
    arguments = {
        "kernel_initializer": "he_normal",
        "output_initializer": "he_uniform",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    return GlobalContext(2, fusion=fusion, **{**arguments, **options})


def transform(context, weights, name):
    hidden = context @ weights[f"{name}_reduction/kernel"]
    hidden = hidden + weights.get(f"{name}_reduction/bias", 0.0)
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    hidden = hidden * weights[f"{name}_norm/gamma"] + weights[f"{name}_norm/beta"]
    y = np.maximum(hidden, 0) @ weights[f"{name}_expansion/kernel"]
    return y + weights.get(f"{name}_expansion/bias", 0.0)


def oracle(x, keep, weights):
    """Cao et al. 2019, eq. 6, for one item; which parts there are, the weights say."""
    context, total = np.zeros(x.shape[-1]), 0.0
    for cell in np.argwhere(keep):
        weight = np.exp(x[tuple(cell)] @ weights["query"][:, 0])
        context, total = context + weight * x[tuple(cell)], total + weight
    context = context / max(total, 1e-300)
    y = np.where(keep[..., None], x, 0.0)
    if "scale_reduction/kernel" in weights:
        y = y * sigmoid(transform(context, weights, "scale"))
    if "add_reduction/kernel" in weights:
        y = y + transform(context, weights, "add")
    return y


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    gate_checks.check_oracle(make, oracle, rank, data_format)


@pytest.mark.parametrize("fusion", ["add", "scale"])
def test_one_fusion_alone(fusion):
    def one(**options):
        return make(fusion, use_bias=False, **options)

    gate_checks.check_oracle(one, oracle, 2, LAST)
    layer = one()
    layer.build((None, 5, 4, 6))
    assert len(layer.weights) == 5  # the query, two kernels, gain and offset of the norm


def test_a_new_layer_that_adds_is_the_identity():
    x, _ = maps(2)
    np.testing.assert_array_equal(result(GlobalContext(2), x), x)


def test_layer():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="global_context", equivariant=True, dropout=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


def test_bad_input():
    gate_checks.check_bad_input(make)
    with pytest.raises(ValueError, match=r"`ratio` must be an integer >= 1.*ratio=0"):
        GlobalContext(0)
    with pytest.raises(ValueError, match=r"`fusion` must be one of add, scale, both.*'mul'"):
        make("mul")
    with pytest.raises(ValueError, match=r"`ratio` must leave .* ratio=4, channels=6"):
        GlobalContext(4).build((None, 5, 4, 6))
