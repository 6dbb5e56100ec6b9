"""Attention in NumPy float64, one query at a time, from the papers' equations."""

import numpy as np


def attention(q, k, v, *, keep=None, bias=None, scale=None, softcap=None, sinks=None):
    """Output `(B, T, N, Dv)` and weights `(B, N, T, S)`.

    Vaswani et al. 2017, eq. 1, head by head. `keep` and `bias` are `(B, N, T, S)`; a softcap bends
    the scaled scores, a sink adds exp(sink) to the sum of the softmax and nothing to the output.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, queries, heads, width = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    scale = 1.0 / np.sqrt(width) if scale is None else scale
    output = np.zeros((batch, queries, heads, v.shape[-1]))
    weights = np.zeros((batch, heads, queries, keys))
    for b, n, t in np.ndindex(batch, heads, queries):
        seen = [s for s in range(keys) if keep is None or keep[b, n, t, s]]
        if not seen:
            continue
        scores = scale * (k[b, seen, n // group] @ q[b, t, n])
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = scores + np.asarray(bias, np.float64)[b, n, t, seen]
        highest = scores.max()
        powers = np.exp(scores - highest)
        total = powers.sum()
        if sinks is not None:
            total += np.exp(sinks[n] - highest)
        weights[b, n, t, seen] = powers / total
        output[b, t, n] = weights[b, n, t, seen] @ v[b, seen, n // group]
    return output, weights


def gradients(q, k, v, upstream, **options):
    """Central differences of sum(upstream * output) with respect to q, k and v, in float64."""
    found = []
    for which in range(3):
        inputs = [np.array(x, np.float64) for x in (q, k, v)]
        gradient = np.zeros_like(inputs[which])
        for index in np.ndindex(gradient.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in inputs]
                moved[which][index] += step
                values.append((upstream * attention(*moved, **options)[0]).sum())
            gradient[index] = (values[0] - values[1]) / 2e-5
        found.append(gradient)
    return found


def causal(queries, keys):
    """Query i sees key j iff j <= i + (S - T)."""
    shift = keys - queries
    return np.array([[j <= i + shift for j in range(keys)] for i in range(queries)])


def window(queries, keys, size):
    """Query i sees key j iff |i + (S - T) - j| < size."""
    shift = keys - queries
    return np.array([[abs(i + shift - j) < size for j in range(keys)] for i in range(queries)])


def t5_bucket(relative, buckets, max_distance, bidirectional):
    """Raffel et al. 2019, sec. 2.1, for key - query: near keys apart, far ones by logarithm."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = np.log(distance / exact) / np.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)
