"""What is known to act on each step alone does so; and nothing else is said to."""

import keras
import pytest
from keras import layers, ops

from kattn.generation import acts_on_each_step
from kattn.layers import DropPath, FeedForward, LayerScale
from tests.compute import assert_close, result

STEPS, WIDTH = 5, 4


class Doubled(layers.Dense):
    """A subclass that has Keras's call."""


class Reversed(layers.Dense):
    def call(self, x, training=None):
        return ops.flip(super().call(x), axis=1)


class Declared(layers.Layer):
    acts_on_each_step = True

    def call(self, x):
        return x * 2


def declared_lambda():
    layer = layers.Lambda(lambda x: x * 3)
    layer.acts_on_each_step = True
    return layer


ALONE = {
    "dense": lambda: layers.Dense(3, activation="softmax"),
    "subclass of dense": lambda: Doubled(3),
    "dropout": lambda: layers.Dropout(0.5),
    "activation": lambda: layers.Activation("gelu"),
    "layer norm": layers.LayerNormalization,
    "rms norm": layers.RMSNormalization,
    "unit norm": layers.UnitNormalization,
    "batch norm": layers.BatchNormalization,
    "softmax": layers.Softmax,
    "prelu": lambda: layers.PReLU(shared_axes=[1]),
    "einsum": lambda: layers.EinsumDense("btc,cnd->btnd", (None, 2, 3), bias_axes="nd"),
    "einsum with an ellipsis": lambda: layers.EinsumDense("...c,cd->...d", 3),
    "conv of one step": lambda: layers.Conv1D(3, 1),
    "reshape": lambda: layers.Reshape((-1, 2, 2)),
    "permute": lambda: layers.Permute((1, 2)),
    "time distributed": lambda: layers.TimeDistributed(layers.Dense(3)),
    "feed-forward": lambda: FeedForward(6),
    "drop path": lambda: DropPath(0.3),
    "layer scale": lambda: LayerScale(0.5),
    "declared": Declared,
    "declared lambda": declared_lambda,
}
MIXED = {
    "overridden call": lambda: Reversed(3),
    "layer norm over steps": lambda: layers.LayerNormalization(axis=1),
    "layer norm over both": lambda: layers.LayerNormalization(axis=(1, 2)),
    "batch norm by step": lambda: layers.BatchNormalization(axis=1),
    "softmax over steps": lambda: layers.Softmax(axis=1),
    "unit norm over steps": lambda: layers.UnitNormalization(axis=-2),
    "group norm": lambda: layers.GroupNormalization(2),
    "prelu by step": layers.PReLU,
    "einsum over steps": lambda: layers.EinsumDense("btc,ts->bsc", (STEPS, WIDTH)),
    "einsum with a bias by step": lambda: layers.EinsumDense(
        "btc,cd->btd", (STEPS, 3), bias_axes="td"
    ),
    "conv": lambda: layers.Conv1D(3, 2, padding="causal"),
    "conv with strides": lambda: layers.Conv1D(3, 1, strides=2),
    "pooling": lambda: layers.AveragePooling1D(2),
    "global pooling": layers.GlobalAveragePooling1D,
    "flatten": layers.Flatten,
    "reshape that moves steps": lambda: layers.Reshape((-1, 2)),
    "reshape to a length": lambda: layers.Reshape((STEPS, 2, 2)),
    "permute steps": lambda: layers.Permute((2, 1)),
    "recurrent": lambda: layers.LSTM(3, return_sequences=True),
    "lambda": lambda: layers.Lambda(lambda x: x * 3),
    "activation of one's own": lambda: layers.Dense(3, activation=lambda x: ops.flip(x, axis=1)),
    "padding": lambda: layers.ZeroPadding1D(1),
}


@pytest.mark.parametrize("name", ALONE)
def test_known_to_act_on_each_step_alone(rng, name):
    """It is said so, and it is so."""
    layer, steps = ALONE[name](), keras.KerasTensor((None, STEPS, WIDTH))
    layer(steps)
    assert acts_on_each_step(layer, (steps,), {})
    x = rng.normal(size=(2, STEPS, WIDTH)).astype("float32")
    whole, part = result(lambda x: (layer(x), layer(x[:, 2:3])), x)
    assert_close(part, whole[:, 2:3])


@pytest.mark.parametrize("name", MIXED)
def test_not_known(name):
    layer = MIXED[name]()
    steps = keras.KerasTensor((None, STEPS, WIDTH))
    layer(steps)
    assert not acts_on_each_step(layer, (steps,), {})


def test_embeddings():
    tokens = keras.KerasTensor((None, STEPS), dtype="int32")
    assert acts_on_each_step(layers.Embedding(11, 4), (tokens,), {})
    assert not acts_on_each_step(layers.Dense(3), (keras.KerasTensor((None, STEPS)),), {})


def test_layers_of_several_inputs():
    x, y = keras.KerasTensor((None, STEPS, WIDTH)), keras.KerasTensor((None, STEPS, WIDTH))
    flat = keras.KerasTensor((None, WIDTH))
    assert acts_on_each_step(layers.Add(), ([x, y],), {})
    assert not acts_on_each_step(layers.Add(), ([x, flat],), {})
    assert acts_on_each_step(layers.Concatenate(), ([x, y],), {})
    assert not acts_on_each_step(layers.Concatenate(axis=1), ([x, y],), {})
    assert not acts_on_each_step(layers.Dot(axes=1), ([x, y],), {})


def test_training_is_not_known():
    x = keras.KerasTensor((None, STEPS, WIDTH))
    assert not acts_on_each_step(layers.BatchNormalization(), (x,), {"training": True})
    assert acts_on_each_step(layers.BatchNormalization(), (x,), {"training": False})
