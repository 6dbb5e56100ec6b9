"""Products of queries with the learned vectors of a bias."""

from keras import ops

from kattn.arguments import error
from kattn.ops.sizes import known_shape


def query_products(query, table):
    """Products of each query q with each vector a of a table: q . a / sqrt(D), as scores are.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        table: R vectors, float32, shape `(R, D)`.

    Returns:
        `(B, N, T, R)` float32.

    Raises:
        ValueError: If `query` is None, has another rank, or another width than the table.
    """
    require_query(query)
    width = table.shape[-1]
    if len(query.shape) != 4 or query.shape[-1] != width:
        raise error(
            f"`query` must have rank 4, (batch, steps, heads, width), and the width of the "
            f"table, D={width}",
            query=query,
        )
    q = ops.cast(ops.swapaxes(query, 1, 2), "float32")  # (B, N, T, D)
    return ops.matmul(q, ops.transpose(table) * width**-0.5)  # (B, N, T, R)


def require_query(query):
    """Raises ValueError if `query` (or the shape of it) is None."""
    if query is None:
        raise error("`query` must be given, because the bias is computed from it", query=None)


def check_query(query, scores):
    """Raises ValueError unless the shape of `query` fits that of `scores`."""
    if len(query.shape) != 4 or len(scores.shape) != 4:
        return  # A wrong rank has a message of its own.
    batch, heads, queries, _ = known_shape(scores)
    pairs = zip(known_shape(query)[:3], (batch, queries, heads), strict=True)
    if any(have != want for have, want in pairs if None not in (have, want)):
        raise error(
            "`query` must have shape (B, T, N, D) where `scores` has (B, N, T, S)",
            query=query,
            scores=scores,
        )
