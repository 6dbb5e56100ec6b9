"""Transformer blocks in NumPy float64, from the papers' equations."""

import math
from functools import partial

import keras
import numpy as np

from tests import oracle
from tests.compute import run


def weights_of(block):
    """The block's weights by their names inside of the block."""
    return {
        weight.path.split("/", 1)[1]: run(keras.ops.convert_to_tensor, weight).astype(float)
        for weight in block.weights
        if "seed" not in weight.path
    }


def gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def norm(w, name, x):
    """Ba et al. 2016, eq. 4, or, without a bias, Zhang and Sennrich 2019, eq. 4."""
    if f"{name}/beta" not in w:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"]
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}/gamma"] + w[f"{name}/beta"]


def under(w, prefix):
    """Of weights by name those of a part, by their names inside of it."""
    return {name[len(prefix) + 1 :]: x for name, x in w.items() if name.startswith(f"{prefix}/")}


def heads(x, count):
    return x.reshape(*x.shape[:2], count, -1)


def self_attention(w, x, keep, count, bias=None):
    """Vaswani et al. 2017, sec. 3.2; `keep` and what is added to scores are `(B, N, T, T)`."""
    qkv = np.split(x @ w["attention/qkv/kernel"] + w["attention/qkv/bias"], 3, axis=-1)
    mixed, _ = oracle.attention(*(heads(part, count) for part in qkv), keep=keep, bias=bias)
    mixed = mixed.reshape(x.shape)
    return mixed @ w["attention/output/kernel"] + w["attention/output/bias"]


def cross_attention(w, x, context, keep, count):
    """Vaswani et al. 2017, sec. 3.2.3; `keep` is `(B, N, T, S)`."""
    name = "cross_attention"
    q = x @ w[f"{name}/query/kernel"] + w[f"{name}/query/bias"]
    kv = context @ w[f"{name}/key_value/kernel"] + w[f"{name}/key_value/bias"]
    parts = (q, *np.split(kv, 2, axis=-1))
    mixed, _ = oracle.attention(*(heads(part, count) for part in parts), keep=keep)
    return mixed.reshape(x.shape) @ w[f"{name}/output/kernel"] + w[f"{name}/output/bias"]


def feed_forward(w, x):
    """Vaswani et al. 2017, eq. 2, with the GELU of Hendrycks and Gimpel 2016."""
    h = gelu(x @ w["feed_forward/hidden/kernel"] + w["feed_forward/hidden/bias"])
    return h @ w["feed_forward/output/kernel"] + w["feed_forward/output/bias"]


def block(w, x, parts, *, placement="pre", scale=1.0):
    """Each part is (role, function), in order."""
    if placement == "parallel":
        read = norm(w, "norm", x)
        return scale * x + sum(gain(w, role) * f(read) for role, f in parts)
    for role, f in parts:
        name = f"{role}_residual"
        y = f(x) if placement == "post" else f(norm(w, f"{name}/norm", x))
        if placement == "sandwich":
            y = norm(w, f"{name}/output_norm", y)
        x = scale * x + gain(w, role) * y
        if placement == "post":
            x = norm(w, f"{name}/norm", x)
    return x


def stack(w, x, keep, count, *, placement="pre", bias=None, context=None, keep_context=None):
    """Blocks one behind the other, and the norm behind the last, if no block ends with one.

    `keep` has a mask for each block.
    """
    for i, see in enumerate(keep):
        own = under(w, f"block{i}")
        parts = [("attention", partial(self_attention, own, keep=see, count=count, bias=bias))]
        if context is not None:
            across = partial(cross_attention, own, context=context, keep=keep_context, count=count)
            parts.append(("cross_attention", across))
        parts.append(("feed_forward", partial(feed_forward, own)))
        x = block(own, x, parts, placement=placement)
    return x if placement == "post" else norm(w, "norm", x)


def gain(w, role):
    """Touvron et al. 2021, eq. 4."""
    return w.get(f"{role}_residual/layer_scale/scale", 1.0)
