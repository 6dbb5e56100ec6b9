"""Recurrent cells in NumPy float64, one item and one step at a time.

keep is `(B, T)`: at padding states and output stay what they are, and the output is 0 before
the first real step.
"""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def lstm_step(x, states, kernel, recurrent, bias):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    h, c = states
    i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)


def gru_step(x, states, kernel, recurrent, bias):
    """Cho et al. 2014, with the reset gate behind the product."""
    (h,) = states
    z, r, n = np.split(x @ kernel + bias[0], 3)
    of_z, of_r, of_n = np.split(h @ recurrent + bias[1], 3)
    z, r = sigmoid(z + of_z), sigmoid(r + of_r)
    h = z * h + (1 - z) * np.tanh(n + r * of_n)
    return h, (h,)


STEPS = {"LSTM": lstm_step, "GRU": gru_step}


def rnn(kind, x, weights, *, keep=None, initial=None, backwards=False):
    """Outputs `(B, T, U)` in the order of the steps that are taken, and the last states."""
    kernel, recurrent, *bias = (np.asarray(w, float) for w in weights)
    units = recurrent.shape[0]
    bias = bias[0] if bias else np.zeros((2, 3 * units) if kind == "GRU" else 4 * units)
    count = 2 if kind == "LSTM" else 1
    batch, steps, _ = x.shape
    outputs, last = np.zeros((batch, steps, units)), np.zeros((count, batch, units))
    for b in range(batch):
        states = [np.zeros(units) if initial is None else initial[n][b] for n in range(count)]
        y, order = np.zeros(units), range(steps)
        for place, t in enumerate(reversed(order) if backwards else order):
            if keep is None or keep[b, t]:
                y, states = STEPS[kind](x[b, t].astype(float), states, kernel, recurrent, bias)
            outputs[b, place] = y
        last[:, b] = states
    return outputs, list(last)
