"""What every position scheme that adds to the scores must do; its oracle is given.

A rule is `rule(q, *weights)`: the bias `(B, N, T, S)` in NumPy float64, written from the paper.
"""

import functools

import keras
import numpy as np
from keras import ops

from kattn import masks
from kattn.grid import Grid
from kattn.ops import attention
from kattn.ops.kernels import banded, frames, tiles
from tests import oracle
from tests.checks import shake
from tests.compute import assert_close, compiled, differentiate, quick, run

KERNELS = ("dense", "chunked", "banded")
WINDOW = 4


def small_blocks(monkeypatch):
    """Blocks of a few steps, so that small inputs have many."""
    monkeypatch.setattr(tiles, "BLOCK", 3)
    monkeypatch.setattr(frames, "NARROWEST", 3)
    monkeypatch.setattr(banded, "MANY", 1)


def weights_of(layer):
    """NumPy float64."""
    return [run(ops.convert_to_tensor, w).astype(float) for w in layer.weights]


def with_weights(layer, tensors, function):
    """What a function of no arguments returns when the layer's weights are these tensors."""
    with keras.StatelessScope(state_mapping=list(zip(layer.weights, tensors, strict=True))):
        return function()


def qkv(batch, queries, keys, heads, width):
    """Queries, keys, values, which keys are real, and a gradient of the output."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(batch, n, heads, width)) for n in (queries, keys, keys))
    real = rng.random((batch, keys)) > 0.2
    real[-1] = False
    return q, k, v, real, rng.normal(size=q.shape)


def check_attention(layer, bias, rule, sizes, kernel):
    """Attention with `bias(q)` is the oracle's, and so are its gradients for q and the weights.

    Args:
        layer: Attached, its weights off their initial values.
        bias: `bias(q)`, the layer's.
        rule: The oracle.
        sizes: B, T, S, N and D.
        kernel: Name of the kernel.
    """
    q, k, v, real, upstream = qkv(*sizes)
    expected, wanted = _expected(rule, sizes, tuple(w.tobytes() for w in weights_of(layer)),
                                 tuple(w.shape for w in weights_of(layer)))  # fmt: skip
    mask = masks.Window(WINDOW) & masks.Padding(ops.convert_to_tensor(real))

    def function(q, k, v, *weights):
        def inner():
            return attention(q, k, v, mask=mask, bias=bias(q), implementation=kernel)

        return with_weights(layer, weights, inner)

    found, gradients = differentiate(quick(function), [q, k, v, *weights_of(layer)], upstream)
    assert_close(found, expected)
    # Together: of a number that all keys of a query share, the gradient is 0.
    gradients = np.concatenate([x.ravel() for x in (gradients[0], *gradients[3:])])
    assert_close(gradients, np.concatenate([x.ravel() for x in wanted]), 1e-4)


@functools.cache
def _expected(rule, sizes, weights, shapes):
    """The oracle's output, and central differences for q and each weight."""
    q, k, v, real, upstream = qkv(*sizes)
    _, queries, keys, _, _ = sizes
    keep = oracle.window(queries, keys, WINDOW) & real[:, None, None]
    keep = np.broadcast_to(keep, (len(q), q.shape[2], queries, keys))
    weights = [np.frombuffer(w).reshape(shape) for w, shape in zip(weights, shapes, strict=True)]

    def output(q, *weights):
        return oracle.attention(q, k, v, keep=keep, bias=rule(q, *weights))[0]

    gradients = []
    for which, array in enumerate([q, *weights]):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [np.array(x) for x in (q, *weights)]
                moved[which][index] += step
                values.append((upstream * output(*moved)).sum())
            gradient[index] = (values[0] - values[1]) / 2e-5
        gradients.append(gradient)
    return output(q, *weights), gradients


@keras.saving.register_keras_serializable("tests")
class BiasHost(keras.layers.Layer):
    """Attends as an attention layer does, of `(B, T, C)` by N = 2 heads, without projections."""

    def __init__(self, position, sides=None, **kwargs):
        super().__init__(**kwargs)
        self.position = position
        self.sides = sides

    def build(self, x_shape):
        self.position.attach(width=x_shape[-1], num_heads=2, key_dim=x_shape[-1] // 2)
        self.built = True

    @property
    def grid(self):
        return None if self.sides is None else Grid(tuple(self.sides))

    def call(self, x):
        heads = ops.reshape(x, (*ops.shape(x)[:2], 2, x.shape[-1] // 2))
        bias = self.position.bias(heads, self.grid)
        return ops.reshape(attention(heads, heads, heads, bias=bias), ops.shape(x))

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        # Keras copies nested configs, and so loses the mark of a shared object that it puts on the
        # first of them later, when it sees the second: here the second is written at once.
        for _ in range(2):
            position = keras.saving.serialize_keras_object(self.position)
        return {**super().get_config(), "position": position, "sides": self.sides}

    @classmethod
    def from_config(cls, config):
        position = keras.saving.deserialize_keras_object(config.pop("position"))
        return cls(position, **config)


def host_oracle(x, rule, weights):
    """What `BiasHost` computes."""
    heads = np.reshape(x, (*x.shape[:2], 2, -1)).astype(float)
    mixed = oracle.attention(heads, heads, heads, bias=rule(heads, *weights))[0]
    return mixed.reshape(x.shape)


class Probe(BiasHost):
    """Returns the bias of its heads, `(B or 1, N, T, T)`."""

    def call(self, x):
        heads = ops.reshape(x, (*x.shape[:2], 2, x.shape[-1] // 2))
        return self.position.bias(heads, self.grid)[0 : x.shape[1], 0 : x.shape[1]]


def check_inside(position, rule, steps, policy, tolerance=1e-5):
    """Inside a layer of lower precision, the bias is float32 and of weights in float32."""
    half = policy.removeprefix("mixed_")
    x = ops.cast(np.random.default_rng(6).normal(size=(2, steps, 8)), half)
    probe = Probe(position, dtype=policy)
    shake(probe, [x])
    found = probe(x)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    heads = np.reshape(run(ops.cast, x, "float32").astype(float), (2, steps, 2, 4))
    expected = rule(heads, *weights_of(probe))
    assert_close(np.broadcast_to(run(lambda: found), expected.shape), expected, tolerance)


def check_in_a_layer(position, rule, steps, folder):
    """In a layer it computes what the oracle does, compiled and after it was saved, too."""
    node = keras.Input((steps, 8))
    host = BiasHost(position)
    model = keras.Model(node, host(node))
    shake(host)
    x = np.random.default_rng(6).normal(size=(2, steps, 8)).astype("float32")
    expected = host_oracle(x, rule, weights_of(host))
    assert_close(model.predict(x, verbose=0), expected)
    assert_close(run(compiled(host), ops.convert_to_tensor(x)), expected)
    model.save(folder / "model.keras")
    again = keras.saving.load_model(folder / "model.keras")
    assert_close(again.predict(x, verbose=0), expected)
    assert [w.path for w in again.weights] == [w.path for w in model.weights]
