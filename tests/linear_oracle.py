"""Linear attention in NumPy float64, one query at a time, from the papers' equations."""

import numpy as np


def elu_plus_one(x):
    """Katharopoulos et al. 2020, eq. 7, elu(x) + 1, without the rounding of exp(x) - 1 + 1."""
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))


def softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def softmax_steps(x, keep):
    """Shen et al. 2018, sec. 3.3: each feature's softmax over the real steps; `(B, S, K, D)`."""
    found = np.zeros(x.shape)
    for b in range(len(x)):
        if keep[b].any():
            found[b, keep[b]] = softmax(x[b, keep[b]], axis=0)
    return found


def positive_features(x, projection):
    """Choromanski et al. 2020, lemma 1, one vector at a time, for exp(q k / sqrt(D))."""
    features = projection.shape[1]
    found = np.zeros((*x.shape[:-1], features))
    for index in np.ndindex(x.shape[:-1]):
        scaled = x[index] / x.shape[-1] ** 0.25
        for m in range(features):
            exponent = projection[:, m] @ scaled - scaled @ scaled / 2.0
            found[(*index, m)] = np.exp(exponent) / np.sqrt(features)
    return found


def rectified_features(x, projection):
    """Choromanski et al. 2020, sec. 4.2, with 0.001 added."""
    scaled = x / x.shape[-1] ** 0.25
    return (np.maximum(scaled @ projection, 0.0) + 1e-3) / np.sqrt(projection.shape[1])


def attention(phi_q, phi_k, v, keep, *, causal):
    """Katharopoulos et al. 2020, eq. 4: output `(B, T, N, Dv)` and weights `(B, N, T, S)`."""
    batch, queries, heads, _ = phi_q.shape
    group = heads // phi_k.shape[2]
    output = np.zeros((batch, queries, heads, v.shape[-1]))
    weights = np.zeros((batch, heads, queries, phi_k.shape[1]))
    for b, n, t in np.ndindex(batch, heads, queries):
        seen = [s for s in range(phi_k.shape[1]) if keep[b, s] and (s <= t or not causal)]
        if seen:
            similar = phi_k[b, seen, n // group] @ phi_q[b, t, n]
            weights[b, n, t, seen] = similar / similar.sum()
            output[b, t, n] = weights[b, n, t, seen] @ v[b, seen, n // group]
    return output, weights


def gated(q, k, v, decay, keep):
    """Yang et al. 2023, eq. 3, with decays `(B, T, K, D)` in [0, 1]: output and last states."""
    batch, steps, heads, width = q.shape
    group = heads // k.shape[2]
    output = np.zeros((batch, steps, heads, v.shape[-1]))
    last = np.zeros((batch, k.shape[2], width, v.shape[-1]))
    for b, n in np.ndindex(batch, heads):
        state = np.zeros((width, v.shape[-1]))
        for t in range(steps):
            if keep[b, t]:
                kept = decay[b, t, n // group][:, None] * state
                state = kept + np.outer(k[b, t, n // group], v[b, t, n // group])
            output[b, t, n] = q[b, t, n] @ state
        last[b, n // group] = state
    return output, last


def gradients(function, inputs, upstream):
    """Central differences of sum(upstream * function(*inputs)), in float64."""
    found = []
    for which in range(len(inputs)):
        gradient = np.zeros_like(inputs[which])
        for index in np.ndindex(gradient.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in inputs]
                moved[which][index] += step
                values.append((upstream * function(*moved)).sum())
            gradient[index] = (values[0] - values[1]) / 2e-5
        found.append(gradient)
    return found
