import keras
import numpy as np
import pytest

from kattn.layers import CausalDepthwiseConv1D
from tests.checks import check_layer
from tests.compute import assert_close, quick, run
from tests.recurrent_oracle import KEEP, build, convolved, weights_of

FULL = {
    "kernel_size": 3,
    "activation": "tanh",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}


@pytest.mark.parametrize("keep", [np.ones_like(KEEP), KEEP], ids=["whole", "padded"])
@pytest.mark.parametrize("size", [1, 3, 7])  # the last is longer than the sequence
def test_matches_oracle(rng, size, keep):
    layer, x = build(CausalDepthwiseConv1D(size, activation="tanh"), rng)
    w = weights_of(layer)
    expected = np.tanh(convolved(x, w["kernel"], w["bias"], keep))
    assert_close(run(quick(layer), x, mask=keep), expected)


def test_without_padding_it_is_the_one_of_keras(rng):
    layer, x = build(CausalDepthwiseConv1D(4, use_bias=False), rng)
    keras_layer = keras.layers.Conv1D(8, 4, groups=8, padding="causal", use_bias=False)
    if keras.backend.backend() == "tensorflow":  # which has no groups on a CPU
        keras_layer = keras.layers.DepthwiseConv1D(4, padding="valid", use_bias=False)
    kernel = weights_of(layer)["kernel"]
    padded = np.pad(x, [(0, 0), (3, 0), (0, 0)])
    if isinstance(keras_layer, keras.layers.DepthwiseConv1D):
        keras_layer.build(padded.shape)
        keras_layer.set_weights([kernel[:, :, None]])
        expected = run(keras_layer, padded)
    else:
        keras_layer.build(x.shape)
        keras_layer.set_weights([kernel[:, None, :]])
        expected = run(keras_layer, x)
    assert_close(run(quick(layer), x), expected)


def test_initial_weights():
    layer = CausalDepthwiseConv1D(4)
    layer.build((None, 5, 2000))
    kernel = weights_of(layer)["kernel"]
    assert 0.49 < np.abs(kernel).max() <= 0.5  # 1 / sqrt(4)


def make(**options):
    return CausalDepthwiseConv1D(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(
        make,
        [x],
        fixture="causal_depthwise_conv1d",
        causal=True,
        window=3,
        dropout=False,
        decodes=True,
    )


def test_bad_arguments(rng):
    with pytest.raises(ValueError, match=r"`kernel_size` must be an integer >= 1.*kernel_size=0"):
        CausalDepthwiseConv1D(0)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 8\)"):
        CausalDepthwiseConv1D(2)(rng.normal(size=(3, 8)))
