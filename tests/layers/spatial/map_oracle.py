"""Self-attention over the cells of one map, query by query, in NumPy float64."""

import numpy as np


def attend(x, weights, num_heads, sees, bias=None):
    """softmax(q k^T / sqrt(D) + bias) v W + b for a map `(*sides, C)`.

    Args:
        x: The map.
        weights: Weights by name: `qkv/kernel`, `output/kernel` and, if there are any, biases.
        num_heads: Number of heads.
        sees: Function of the coordinates of two cells: whether the first attends to the second.
        bias: Function of head and the coordinates of two cells: what is added to their score.

    Returns:
        The attention of all cells, `(*sides, C)`; and the weights `(N, T, T)`.
    """
    width = len(weights["output/kernel"])
    projected = x @ weights["qkv/kernel"] + weights.get("qkv/bias", 0.0)
    key_width = (projected.shape[-1] - width) // 2
    cells = list(np.ndindex(x.shape[:-1]))
    mixed = np.zeros((*x.shape[:-1], width))
    maps = np.zeros((num_heads, len(cells), len(cells)))
    for n in range(num_heads):
        size, of_value = key_width // num_heads, width // num_heads
        q = projected[..., n * size : (n + 1) * size]
        k = projected[..., key_width + n * size : key_width + (n + 1) * size]
        v = projected[..., 2 * key_width + n * of_value : 2 * key_width + (n + 1) * of_value]
        for i, query in enumerate(cells):
            seen = [j for j, key in enumerate(cells) if sees(query, key)]
            if not seen:
                continue
            scores = np.array([q[query] @ k[cells[j]] for j in seen]) / np.sqrt(size)
            if bias is not None:
                scores += [bias(n, query, cells[j]) for j in seen]
            exponents = np.exp(scores - scores.max())
            maps[n, i, seen] = exponents / exponents.sum()
            values = np.stack([v[cells[j]] for j in seen])
            mixed[query][n * of_value : (n + 1) * of_value] = maps[n, i, seen] @ values
    return mixed @ weights["output/kernel"] + weights.get("output/bias", 0.0), maps
