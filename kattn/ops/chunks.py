"""Sequences cut into chunks of steps, for attention whose cost is linear in the length.

Layout: queries `(B, K, chunks, G, steps, D)`, keys `(B, K, chunks, steps, D)`: the G = N / K query
heads that share a key head lie beside each other, as in `kattn.ops.kernels.block`. All float32.
"""

import keras
from keras import ops

from kattn.arguments import check_choice, check_integers, error
from kattn.masks.checks import REAL_STEP, bool_tensor
from kattn.ops.attention import check_sizes
from kattn.ops.sizes import at_least_one, ceil_divide, is_symbol, known_shape

IMPLEMENTATIONS = ("auto", "parallel", "chunked")


def check(query, key, value, mask, implementation, chunk):
    """Raises ValueError for arguments of linear attention that do not fit.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`.
        value: Values, float, shape `(B, S, K, Dv)`.
        mask: Bool, shape `(B, S)`; True = real step, False = padding. None if all are real.
        implementation: "auto", "parallel" or "chunked".
        chunk: Largest number of steps in a chunk, an integer >= 1. None for a default.

    Returns:
        The mask as a tensor, or None.

    Raises:
        ValueError: If an argument does not fit, or if a tensor is symbolic.

    Example:
        >>> x = keras.ops.ones((2, 3, 4, 8))
        >>> check(x, x, x, np.ones((2, 3), bool), "auto", None).shape
        (2, 3)
    """
    if any(isinstance(x, keras.KerasTensor) for x in (query, key, value)):
        rule = "Linear attention takes no symbolic tensors; use its layer in a functional model"
        raise error(rule, query=query, key=key, value=value)
    check_sizes(query, key, value)
    check_choice(IMPLEMENTATIONS, implementation=implementation)
    if chunk is not None:
        check_integers(1, chunk=chunk)
    return None if mask is None else check_mask(mask, known_shape(key)[:2])


def check_mask(mask, shape):
    """The mask as a tensor.

    Args:
        mask: Bool, shape `(B, steps)`; True = real step, False = padding.
        shape: The shape that it must have, `(B, steps)`. None stands for an unknown size.

    Returns:
        The bool tensor.

    Raises:
        ValueError: If the mask is a list, not boolean, or of another shape.
    """
    mask = bool_tensor(mask, "mask", ("(B, steps)",), REAL_STEP)
    sizes = zip(known_shape(mask), shape, strict=True)
    if any(have != need and None not in (have, need) for have, need in sizes):
        raise error(f"`mask` must have shape (B, steps)={tuple(shape)}", mask=mask)
    return mask


def check_same_steps(query, key):
    """Raises ValueError unless there are as many queries as keys."""
    queries, keys = known_shape(query)[1], known_shape(key)[1]
    if queries != keys and None not in (queries, keys):
        raise error(
            "Causal linear attention takes as many queries as keys; give the keys before them as "
            "`state`",
            queries=queries,
            keys=keys,
        )


def chunk_size(steps, limit):
    """Steps in a chunk, at most `limit`, so that the chunks fill `steps` as well as they can.

    None, for one chunk of all steps, if `steps` is a symbol: PyTorch traces a model for some number
    of chunks, and takes a number that happens to be 1 for one that is always 1.
    """
    if is_symbol(steps):
        return None
    if not isinstance(steps, int):
        return at_least_one(ops.minimum(steps, limit))
    count = at_least_one(ceil_divide(steps, limit))
    return at_least_one(ceil_divide(steps, count))


def of_queries(x, key_heads, size):
    """`(B, T, N, D)` to `(B, K, chunks, G, size, D)`, float32, filled with zeros.

    All steps are one chunk if `size` is None.
    """
    batch, steps, heads, width = ops.shape(x)
    count, size = _cut(steps, size)
    x = _fill(ops.cast(x, "float32"), count * size - steps)
    x = ops.reshape(x, (batch, count, size, key_heads, heads // key_heads, width))
    return ops.transpose(x, (0, 3, 1, 4, 2, 5))


def of_keys(x, size):
    """`(B, T, K, D)` to `(B, K, chunks, size, D)`, float32, filled with zeros.

    All steps are one chunk if `size` is None.
    """
    batch, steps, heads, width = ops.shape(x)
    count, size = _cut(steps, size)
    x = _fill(ops.cast(x, "float32"), count * size - steps)
    x = ops.reshape(x, (batch, count, size, heads, width))
    return ops.transpose(x, (0, 3, 1, 2, 4))


def joined(x, steps):
    """The way back: `(B, K, chunks, G, size, D)` to `(B, steps, N, D)`."""
    batch, key_heads, count, groups, size, width = ops.shape(x)
    x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
    return ops.reshape(x, (batch, count * size, key_heads * groups, width))[:, :steps]


def real_steps(query, mask):
    """How many new steps are real: `(B,)` int32, or one number for all without a mask."""
    if mask is None:
        return ops.shape(query)[1]
    return ops.sum(ops.cast(mask, "int32"), axis=1)


def lower_triangle(size):
    """`(size, size)` bool: which steps each step of a chunk sees, its own included."""
    steps = ops.arange(size, dtype="int32")  # TorchDynamo cannot trace the default
    return steps[:, None] >= steps[None, :]


def silence(x, mask):
    """`(B, T, K, D)` with zeros at padding."""
    return x if mask is None else ops.where(mask[:, :, None, None], x, ops.zeros_like(x))


def log_decays(log_decay, mask, steps, size):
    """Log decays in chunks, 0 at padding and behind the last step.

    `(B, T, K, D)`, `(B, T, K)` or `(K,)` to `(B, K, chunks, size, D)`, with 1 for D where a head
    has one decay, and for B and chunks where all steps have the same.
    """
    g = ops.cast(log_decay, "float32")
    if len(g.shape) == 1:
        g, whole = g[None, None, :, None], steps if size is None else size
        if mask is None and isinstance(steps, int) and steps > 0 and steps % whole == 0:
            return of_keys(ops.repeat(g, whole, axis=1), size)  # one chunk stands for all
        g = g * ops.ones((1, steps, 1, 1), "float32")
    elif len(g.shape) == 3:
        g = g[..., None]
    if mask is not None:
        g = ops.where(mask[:, :, None, None], g, 0.0)
    return of_keys(g, size)


def spans(g):
    """The sums over l of g_l with s < l <= t: `(..., n, D)` to `(..., t, s, D)`."""
    steps = ops.arange(ops.shape(g)[-2], dtype="int32")
    later = steps[:, None] > steps[None, :]
    return ops.cumsum(ops.where(later[..., None], g[..., :, None, :], 0.0), axis=-3)


def decayed(sums):
    """exp(sums) `(..., t, s, D)` where t >= s, else 0."""
    seen = lower_triangle(ops.shape(sums)[-2])
    return ops.where(seen[..., None], ops.exp(sums), 0.0)


def _cut(steps, size):
    """The number of chunks, and the number of steps in one."""
    if size is None:
        return 1, at_least_one(steps)
    return at_least_one(ceil_divide(steps, size)), size


def _fill(x, more):
    if isinstance(more, int) and more == 0:
        return x
    # Not Keras's `pad`: it names an operation, after which TorchDynamo cannot trace a layer's call
    # and begins again without it.
    batch, _, heads, width = ops.shape(x)
    return ops.concatenate([x, ops.zeros((batch, more, heads, width), x.dtype)], axis=1)
