"""What the tests of recurrent layers share: masks, a loop over steps, the weights of a layer."""

import numpy as np
from keras import ops

from tests.checks import shake
from tests.compute import run

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
STARTS = np.array([[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0]], bool)
NO_STARTS = np.zeros_like(STARTS)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def gelu(x):
    """The approximation by tanh."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def build(layer, rng, shape=(3, 5, 8)):
    """The layer with weights off their initial values, and an input."""
    x = rng.normal(size=shape).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def weights_of(layer):
    """By their paths below the layer, float64."""
    return {
        weight.path.split("/", 1)[1]: run(ops.convert_to_tensor, weight).astype(float)
        for weight in layer.weights
    }


def through(step, x, keep, starts, width):
    """The states of each item after each step: state = step(item, t, state, is_first).

    Padding leaves the state as it is; a segment starts from zeros.
    """
    states = np.zeros((*x.shape[:2], width))
    for i in range(len(x)):
        state, is_first = np.zeros(width), True
        for t in range(x.shape[1]):
            if keep[i, t]:
                if starts[i, t]:
                    state, is_first = np.zeros(width), True
                state, is_first = step(i, t, state, is_first), False
            states[i, t] = state
    return states


def convolved(x, kernel, bias, keep):
    """A causal convolution over the real steps, one output at a time; the bias at padding."""
    y = np.zeros(x.shape) + bias
    for i in range(len(x)):
        seen = [np.zeros(x.shape[2])] * (len(kernel) - 1)
        for t in range(x.shape[1]):
            if keep[i, t]:
                seen = [*seen, x[i, t]]
                y[i, t] += sum(w * s for w, s in zip(kernel, seen[-len(kernel) :], strict=True))
    return y
