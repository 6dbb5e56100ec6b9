"""Sequences cut into chunks of steps, for attention whose cost is linear in the length.

Layout: queries `(B, K, chunks, G, steps, D)`, keys `(B, K, chunks, steps, D)`: the G = N / K query
heads that share a key head lie beside each other, as in `kattn.ops.kernels.block`. All float32.
"""

import keras
from keras import ops

from kattn.ops.attention import check_sizes

IMPLEMENTATIONS = ("auto", "parallel", "chunked")


def check(query, key, value, mask, implementation, chunk):
    """Raises ValueError for arguments that do not fit; returns the mask as a tensor, or None."""
    if any(isinstance(x, keras.KerasTensor) for x in (query, key, value)):
        raise ValueError(
            "Linear attention takes no symbolic tensors; use its layer in a functional model. "
            f"Received: query={query}, key={key}, value={value}"
        )
    check_sizes(query, key, value)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` must be one of {', '.join(IMPLEMENTATIONS)}; received: implementation={implementation!r}"
        )
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"`chunk` must be an integer >= 1; received: chunk={chunk!r}")
    return None if mask is None else check_mask(mask, key.shape[:2])


def check_mask(mask, shape):
    """The mask as a tensor; raises ValueError unless it is bool and of this shape, (B, steps)."""
    mask = ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise ValueError(f"`mask` must be boolean, True = real step; received: dtype={dtype}")
    fits = len(mask.shape) == 2 and all(
        have == need or None in (have, need) for have, need in zip(mask.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`mask` must have shape (B, steps)={tuple(shape)}; "
            f"received: mask.shape={tuple(mask.shape)}"
        )
    return mask


def check_same_steps(query, key):
    """Raises ValueError unless there are as many queries as keys."""
    queries, keys = query.shape[1], key.shape[1]
    if queries != keys and None not in (queries, keys):
        raise ValueError(
            "Causal linear attention takes as many queries as keys; keys before them are given as "
            f"`state`. Received: queries={queries}, keys={keys}"
        )


def chunk_size(steps, limit):
    """Span in a chunk, at most `limit`, so that the chunks fill `steps` as well as they can."""
    if not isinstance(steps, int):
        return ops.minimum(steps, limit)
    count = max(1, -(-steps // limit))
    return max(1, -(-steps // count))


def of_queries(x, key_heads, size):
    """`(B, T, N, D)` to `(B, K, chunks, G, size, D)`, float32, filled with zeros."""
    batch, steps, heads, width = ops.shape(x)
    count = -(-steps // size)
    x = _fill(ops.cast(x, "float32"), count * size - steps)
    x = ops.reshape(x, (batch, count, size, key_heads, heads // key_heads, width))
    return ops.transpose(x, (0, 3, 1, 4, 2, 5))


def of_keys(x, size):
    """`(B, T, K, D)` to `(B, K, chunks, size, D)`, float32, filled with zeros."""
    batch, steps, heads, width = ops.shape(x)
    count = -(-steps // size)
    x = _fill(ops.cast(x, "float32"), count * size - steps)
    x = ops.reshape(x, (batch, count, size, heads, width))
    return ops.transpose(x, (0, 3, 1, 2, 4))


def joined(x, steps):
    """The way back: `(B, K, chunks, G, size, D)` to `(B, steps, N, D)`."""
    batch, key_heads, count, groups, size, width = ops.shape(x)
    x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
    return ops.reshape(x, (batch, count * size, key_heads * groups, width))[:, :steps]


def length(query, mask):
    """`(B,)` int32, or 0-d where all steps are real: how many there are."""
    if mask is None:
        return ops.cast(ops.shape(query)[1], "int32")
    return ops.sum(ops.cast(mask, "int32"), axis=1)


def lower_triangle(size):
    """`(size, size)` bool: which steps each step of a chunk sees, its own included."""
    steps = ops.arange(size, dtype="int32")  # TorchDynamo cannot trace the default
    return steps[:, None] >= steps[None, :]


def _fill(x, more):
    if isinstance(more, int) and more == 0:
        return x
    # Not `ops.pad`: it names an operation, after which TorchDynamo cannot trace a layer's call and
    # begins again without it.
    batch, _, heads, width = ops.shape(x)
    return ops.concatenate([x, ops.zeros((batch, more, heads, width), x.dtype)], axis=1)
