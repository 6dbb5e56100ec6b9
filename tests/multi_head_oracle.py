"""The drop-in for Keras's multi-head attention, from its equation, and layers to compare."""

import keras
import numpy as np
from keras import ops

from kattn.layers import MultiHeadAttention
from tests.checks import shake
from tests.compute import run

KEEP_QUERIES = np.array([[1] * 4, [0, 1, 1, 0], [0] * 4], bool)  # none, some, all padded


KEEP_KEYS = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)


FULL = {
    "num_heads": 2,
    "key_dim": 4,
    "value_dim": 5,
    "dropout": 0.4,
    "output_shape": (2, 4),
    "attention_axes": 1,
    "sliding_window": 3,
    "flash_attention": False,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l2",
    "kernel_constraint": "max_norm",
    "bias_constraint": "max_norm",
    "use_gate": True,
    "seed": 1,
}


def oracle(layer, query, value, key=None, keep=None, causal=False):
    """Output and weights, one query at a time (Vaswani et al. 2017, eq. 1), in float64.

    `keep` broadcasts to the weights, `(B, <other axes>, N, <query axes>, <key axes>)`.
    """
    w = {part.path.split("/", 1)[1]: run(ops.convert_to_tensor, part).astype(float)
         for part in layer.weights}  # fmt: skip
    key = value if key is None else key
    q, k, v = (
        np.tensordot(x, w[f"{name}/kernel"], 1) + w.get(f"{name}/bias", 0.0)
        for name, x in (("query", query), ("key", key), ("value", value))
    )
    rank, heads = query.ndim, q.shape[-2]
    axes = layer.attention_axes or tuple(range(1, rank - 1))
    axes = tuple(axis % rank for axis in axes)
    others = tuple(axis for axis in range(1, rank - 1) if axis not in axes)

    def sizes(x, of):
        return tuple(x.shape[axis] for axis in of)

    def place(b, other, step):
        where = dict(zip((0, *others, *axes), (b, *other, *step), strict=True))
        return tuple(where[axis] for axis in range(rank - 1))

    shape = (*sizes(q, (0, *others)), heads, *sizes(q, axes), *sizes(k, axes))
    keep = np.ones(shape, bool) if keep is None else np.broadcast_to(keep, shape)
    weights, mixed = np.zeros(shape), np.zeros((*q.shape[:-1], v.shape[-1]))
    query_steps, key_steps = (list(np.ndindex(sizes(x, axes))) for x in (q, k))
    offset, window = len(key_steps) - len(query_steps), layer.sliding_window
    for index in np.ndindex(shape[: 2 + len(others)]):
        b, other, n = index[0], index[1:-1], index[-1]
        for i, t in enumerate(query_steps):
            seen = [
                s
                for j, s in enumerate(key_steps)
                if keep[(*index, *t, *s)]
                and (not causal or j <= i + offset)
                and (window is None or abs(i + offset - j) < window)
            ]
            if not seen:
                continue
            at = (*place(b, other, t), n)
            keys = [(*place(b, other, s), n) for s in seen]
            scores = np.array([k[s] @ q[at] for s in keys]) / np.sqrt(q.shape[-1])
            powers = np.exp(scores - scores.max())
            for s, where, p in zip(seen, keys, powers / powers.sum(), strict=True):
                weights[(*index, *t, *s)] = p
                mixed[at] += p * v[where]
    if "gate/kernel" in w:
        gate = np.tensordot(query, w["gate/kernel"], 1) + w.get("gate/bias", 0.0)
        mixed = mixed / (1.0 + np.exp(-gate))
    output = np.tensordot(mixed, w["attention_output/kernel"], 2)
    return output + w.get("attention_output/bias", 0.0), weights


def build(rng, options, query_shape=(3, 4, 6), value_shape=(3, 5, 7), key_shape=None):
    """A layer with weights off their initial values, and its inputs."""
    shapes = [shape for shape in (query_shape, value_shape, key_shape) if shape]
    inputs = [rng.normal(size=shape).astype("float32") for shape in shapes]
    layer = MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **options})
    layer.build(*shapes)  # on JAX a call compiles each of its operations
    shake(layer)
    return layer, inputs


class SeeMask(keras.layers.Layer):
    """Returns the mask that its input comes with; -1 for none."""

    supports_masking = True

    def call(self, x, mask=None):
        return -ops.ones(ops.shape(x)[:2]) if mask is None else ops.cast(mask, "float32")

    def compute_output_shape(self, shape):
        return shape[:2]
