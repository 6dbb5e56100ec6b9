"""Cheng et al. 2016, eq. 4 to 10, one item and one step at a time, in float64."""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def rows_of(gates, scores, first, has_first, real, weights, window=None):
    """All rows `(T, B, 3 U + A)`, and the weights `(T, 1 + T, B)` with those of `first`.

    At padding only the mixed hidden state of a row means something.
    """
    recurrent, previous, key, energy = weights
    steps, batch, units = len(gates), gates.shape[1], len(recurrent)
    rows, maps = np.zeros((steps, batch, first.shape[1])), np.zeros((steps, steps + 1, batch))
    for b in range(batch):
        h, c = [first[b, :units]], [first[b, units : 2 * units]]
        k, mixed = [first[b, 3 * units :]], first[b, 2 * units : 3 * units]
        for t in range(steps):
            start = 0 if window is None else max(0, t + 1 - window)
            seen = [i for i in range(start, t + 1) if (has_first if i == 0 else real[i - 1, b])]
            mixed_h, mixed_c = np.zeros(units), np.zeros(units)
            if seen:
                e = [np.tanh(k[i] + scores[t, b] + mixed @ previous) @ energy for i in seen]
                share = np.exp(e - np.max(e))
                share = share / share.sum()
                maps[t, seen, b] = share
                mixed_h = sum(s * h[i] for s, i in zip(share, seen, strict=True))
                mixed_c = sum(s * c[i] for s, i in zip(share, seen, strict=True))
            i, f, g, o = np.split(gates[t, b] + mixed_h @ recurrent, 4)
            c.append(sigmoid(f) * mixed_c + sigmoid(i) * np.tanh(g))
            h.append(sigmoid(o) * np.tanh(c[-1]))
            k.append(h[-1] @ key)
            mixed = mixed_h if real[t, b] else mixed
            rows[t, b] = np.concatenate([h[-1], c[-1], mixed, k[-1]])
    return rows, maps
