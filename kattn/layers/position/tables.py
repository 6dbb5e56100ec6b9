"""What position schemes with learned tables have in common."""

import keras
from keras import ops


def check_count(name, value, least):
    """Raises ValueError unless the argument is an integer >= `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}; received: {name}={value!r}")


def read_initializer(initializer):
    """The initializer of a table; None for a truncated normal of deviation 0.02."""
    if initializer is None:
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.initializers.get(initializer)


def add_table(layer, name, shape, initializer):
    """A weight that keeps its precision in layers of lower precision."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        regularizer=layer.regularizer,
        autocast=False,
    )


def read_table(layer, table):
    """A table as a float32 tensor; raises ValueError if it was never made."""
    if table is None:
        raise ValueError(
            "A position scheme has its weights after it was attached to an attention layer or "
            f"called; received: layer {layer.name!r}, which is not built"
        )
    return ops.cast(ops.convert_to_tensor(table), "float32")


def check_same(name, value, known):
    """Raises ValueError unless a layer attached before is attached with an equal size."""
    if value != known:
        raise ValueError(
            f"A table for {name}={known} serves no attention layer of another `{name}`; "
            f"received: {name}={value}"
        )


def numbers_by_query(query, table):
    """Products with each vector a of a table, q . a / sqrt(D), as scores are.

    Args:
        query: `(B, T, N, D)` float.
        table: `(R, D)` float32.

    Returns:
        `(B, N, T, R)` float32.
    """
    width = table.shape[-1]
    if len(query.shape) != 4 or query.shape[-1] != width:
        raise ValueError(
            f"`query` must have rank 4, (batch, steps, heads, width), and the table's width, "
            f"D={width}; received: query.shape={tuple(query.shape)}"
        )
    q = ops.cast(ops.swapaxes(query, 1, 2), "float32")
    return ops.matmul(q, ops.transpose(table) * width**-0.5)


def check_query(query, scores):
    """Raises ValueError unless `query` is what made `scores`."""
    if len(query.shape) != 4 or len(scores.shape) != 4:
        return  # which others say better
    batch, heads, queries, _ = scores.shape
    pairs = zip(query.shape[:3], (batch, queries, heads), strict=True)
    if any(have != want for have, want in pairs if None not in (have, want)):
        raise ValueError(
            "`query` must be (B, T, N, D) where `scores` is (B, N, T, S); received: "
            f"query.shape={tuple(query.shape)}, scores.shape={tuple(scores.shape)}"
        )
