"""Linear attention whose state decays: gated linear attention and retention, in chunks and by step.

With log decays g, what step j put into the state has decayed by exp(g_{j+1} + ... + g_i) at step i.
Every such sum is made of its terms, never as a difference of running sums, which would cancel after
a strong decay; and only sums <= 0 are exponentiated.

Layout: queries `(B, K, chunks, G, steps, D)`, keys `(B, K, chunks, steps, D)`, log decays
`(B, K, chunks, steps, D)` with 1 for D where a head has one decay, and for B and chunks where all
steps have the same. All in float32.
"""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.arguments import error
from kattn.ops import chunks
from kattn.ops.kernels import block
from kattn.ops.sizes import at_least_one, has_shape, is_symbol, known_shape

# Measured on two CPU cores at T = 2048, N = 8, D = 64: chunks of 32 and of 128 take up to 1.5x as
# long. Between chunks `ops.scan`, `ops.associative_scan` (which TensorFlow cannot trace here) and a
# product with the matrix of all decays between chunks take the same within 20 %, at T = 8192 too.
CHUNK = 64


class GatedLinearState(NamedTuple):
    """What gated linear attention knows of the steps before, batch first in every tensor.

    Shapes: B batch, K key/value heads, D width of a key, Dv width of a value.

    Args:
        state: Decayed sum of k v^T over the steps, float32, shape `(B, K, D, Dv)`.
        length: Number of real steps that each item has so far, int32, shape `(B,)`.
    """

    state: Any
    length: Any


def initial_gated_linear_state(batch_size, num_key_value_heads, key_dim, value_dim):
    """The `GatedLinearState` before the first step.

    Args:
        batch_size: Number of sequences, B.
        num_key_value_heads: Number of key/value heads, K.
        key_dim: Width of a key, D.
        value_dim: Width of a value, Dv.

    Returns:
        A `GatedLinearState` of zeros.

    Example:
        >>> state = initial_gated_linear_state(2, 8, 64, 32)
        >>> state.state.shape, state.length
        ((2, 8, 64, 32), [0, 0])
    """
    state = ops.zeros((batch_size, num_key_value_heads, key_dim, value_dim), "float32")
    return GatedLinearState(state, ops.zeros((batch_size,), "int32"))


def check_decay(log_decay, key, *, by_channel=True):
    """The log decays; raises ValueError unless they fit the keys.

    Args:
        log_decay: Logarithms of the decays, of one of the shapes that the message names.
        key: Keys, shape `(B, T, K, D)`.
        by_channel: Whether each channel of the keys may have a decay of its own.

    Returns:
        `log_decay`.

    Raises:
        ValueError: If the shape is another one.

    Example:
        >>> check_decay(keras.ops.zeros((2, 3, 4)), keras.ops.zeros((2, 3, 4, 8))).shape
        (2, 3, 4)
    """
    shape = known_shape(key)
    kinds = {4: shape, 3: shape[:3], 1: shape[2:3]}
    words = "(B, T, K, D), (B, T, K) or (K,)"
    if not by_channel:
        del kinds[4]
        words = "(B, T, K) or (K,)"
    if not any(has_shape(log_decay, kind) for kind in kinds.values()):
        rule = f"`log_decay` must have shape {words}, with the sizes of `key`"
        raise error(rule, log_decay=log_decay, key=key)
    return log_decay


def gated_linear_attention(
    query, key, value, log_decay, *, mask=None, state=None, implementation="auto", chunk=None
):
    """S_t^T q_t with S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, causal and not normalised.

    Sums are computed in float32.

    Shapes: B batch, T steps, N query heads, K key/value heads, D and Dv head widths. Each key head
    has one state, which N / K query heads read.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, T, K, D)`. N must be a multiple of K.
        value: Values, float, shape `(B, T, K, Dv)`.
        log_decay: Logarithms of the decays, float, none above 0: shape `(B, T, K, D)` for a decay
            per channel of the keys (gated linear attention), `(B, T, K)` for one per head, or
            `(K,)` for one per head that is the same at all steps (retention). -inf forgets
            everything.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all steps are real.
        state: The `GatedLinearState` of the steps before. None for no steps.
        implementation: "parallel", "chunked" or "auto". "parallel" takes all pairs of steps at
            once. "chunked" takes pairs of steps within chunks, and a state between them, in memory
            O(T). "auto" is "chunked", which is the same as "parallel" if all steps fit into one
            chunk. With a decay per channel and an unknown number of steps, "parallel" is "chunked"
            too. A model that JAX or PyTorch exports for any number of steps takes all pairs of
            steps at once, and with a decay per channel memory O(T^2 D); in ONNX from PyTorch all
            pairs of chunks.
        chunk: Largest number of steps in a chunk. None for the size that was measured to be fast.

    Returns:
        What the queries read from the states, shape `(B, T, N, Dv)`, in the dtype of the query.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit, or if `implementation` or `chunk` is not
            one of the values above.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> gated_linear_attention(x, x, x, keras.ops.log_sigmoid(x)).shape
        (2, 128, 8, 64)

    Reference:
        Yang et al. 2023, sec. 3 and 4, https://arxiv.org/abs/2312.06635. They take pairs of
        steps channel by channel in chunks within chunks, `_mix_by_channel` in halves of blocks.
        Retention: Sun et al. 2023, eq. 5 to 7, https://arxiv.org/abs/2307.08621
    """
    if state is None:
        state = _initial_state_of(query, key, value)
    return decode_gated_linear_attention(
        query, key, value, log_decay, state, mask=mask, implementation=implementation, chunk=chunk
    )[0]


def decode_gated_linear_attention(
    query, key, value, log_decay, state, *, mask=None, implementation="auto", chunk=None
):
    """`gated_linear_attention` of any number of new steps, and the state after them.

    Shapes: B batch, T new steps, N query heads, K key/value heads, D and Dv head widths.

    Args:
        query: Queries of the new steps, float, shape `(B, T, N, D)`.
        key: Keys of the new steps, float, shape `(B, T, K, D)`. N must be a multiple of K.
        value: Values of the new steps, float, shape `(B, T, K, Dv)`.
        log_decay: Logarithms of the decays, float, none above 0: shape `(B, T, K, D)` for a decay
            per channel of the keys (gated linear attention), `(B, T, K)` for one per head, or
            `(K,)` for one per head that is the same at all steps (retention). -inf forgets
            everything.
        state: The `GatedLinearState` of the steps before.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all new steps are real.
        implementation: "parallel", "chunked" or "auto". "parallel" takes all pairs of steps at
            once. "chunked" takes pairs of steps within chunks, and a state between them, in memory
            O(T). "auto" is "chunked", which is the same as "parallel" if all steps fit into one
            chunk. With a decay per channel and an unknown number of steps, "parallel" is "chunked"
            too. A model that JAX or PyTorch exports for any number of steps takes all pairs of
            steps at once, and with a decay per channel memory O(T^2 D); in ONNX from PyTorch all
            pairs of chunks.
        chunk: Largest number of steps in a chunk. None for the size that was measured to be fast.

    Returns:
        `(output, state)`: what the queries read from the states, shape `(B, T, N, Dv)`, in the
        dtype of the query; and the `GatedLinearState` after the new steps, of the same shapes and
        dtypes as before.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit, or if `implementation` or `chunk` is not
            one of the values above.

    Example:
        >>> state = initial_gated_linear_state(2, 8, 64, 64)
        >>> x = keras.random.normal((2, 1, 8, 64))
        >>> y, state = decode_gated_linear_attention(x, x, x, keras.ops.log_sigmoid(x), state)
        >>> y.shape, state.length
        ((2, 1, 8, 64), [1, 1])

    Reference:
        Yang et al. 2023, sec. 3 and 4, https://arxiv.org/abs/2312.06635
    """
    query, key, value = (ops.convert_to_tensor(x) for x in (query, key, value))
    mask = chunks.check(query, key, value, mask, implementation, chunk)
    chunks.check_same_steps(query, key)
    state = GatedLinearState(*map(ops.convert_to_tensor, state))
    log_decay = check_decay(ops.convert_to_tensor(log_decay), key)
    plan = _Plan(implementation, chunk)
    output, after = _attend(plan, query, key, value, log_decay, mask, state.state)
    return output, GatedLinearState(after, state.length + chunks.real_steps(query, mask))


class _Plan(NamedTuple):
    """What is known before the tensors are."""

    implementation: str
    chunk: int | None


@backend.compiled
def _attend(plan, query, key, value, log_decay, mask, first):
    """What the queries read from the states, and the state after the new steps."""
    steps, by_channel = ops.shape(query)[1], len(log_decay.shape) == 4
    size = _size(steps, *plan, by_channel=by_channel)
    q = chunks.of_queries(query, key.shape[2], size)
    k, v = (chunks.of_keys(chunks.silence(x, mask), size) for x in (key, value))
    g = chunks.log_decays(log_decay, mask, steps, size)
    mixed, q, k, total = (_mix_by_channel if by_channel else _mix_by_head)(q, k, v, g)
    before, after = _carry(total, backend.matmul(k, v, transpose_a=True), first)
    mixed = mixed + block.weights_by_values(q, before)
    return ops.cast(chunks.joined(mixed, steps), query.dtype), after


def _size(steps, implementation, chunk, *, by_channel):
    """Number of steps in a chunk, a power of 2 if there is a decay per channel; None for all."""
    limit = chunk or CHUNK
    if not by_channel:
        return None if implementation == "parallel" else chunks.chunk_size(steps, limit)
    if is_symbol(steps) and not ops.is_tensor(steps):
        return 1  # PyTorch takes a number of chunks that happens to be 1 for one that is always 1
    if isinstance(steps, int):
        limit = at_least_one(steps) if implementation == "parallel" else limit
        limit = chunks.chunk_size(steps, limit)
    return 1 << (limit - 1).bit_length()


def _mix_by_head(q, k, v, g):
    """A chunk by itself, one decay a head.

    Returns:
        The output of each step but for what the chunk's first state adds; q and k decayed from the
        chunk's start and until its end; the log decay of the whole chunk.
    """
    spans = chunks.spans(g)
    weights = chunks.decayed(spans)[..., 0]  # (B, K, chunks, t, s)
    scores = block.queries_by_keys(q, k) * weights[:, :, :, None]
    from_start, to_end = spans[..., :, 0, :] + g[..., :1, :], spans[..., -1, :, :]
    q = q * ops.exp(from_start)[:, :, :, None]
    return block.weights_by_values(scores, v), q, k * ops.exp(to_end), from_start[..., -1, :]


def _mix_by_channel(q, k, v, g):
    """A chunk by itself, one decay a channel: halves of blocks of 2, 4, 8, ... steps.

    Two steps are a pair where they first share a block: one is in its second half, the other in its
    first, and the decay between them is that up to the middle times that from there on.

    Returns:
        The output of each step but for what the chunk's first state adds; q and k decayed from the
        chunk's start and until its end; the log decay of the whole chunk.
    """
    q = ops.swapaxes(q, -3, -2)  # (B, K, chunks, size, G, D)
    mixed = ops.sum(q * k[..., None, :], axis=-1, keepdims=True) * v[..., None, :]
    from_start, to_end, half = g, ops.zeros_like(g), 1
    while half < k.shape[-2]:
        q2, k1, v1 = _halves(q, half, 2)[1], _halves(k, half)[0], _halves(v, half)[0]
        (start1, start2), (end1, end2) = _halves(from_start, half), _halves(to_end, half)
        seen = _read(q2 * ops.exp(start2)[..., None, :], k1 * ops.exp(end1), v1)
        mixed1, mixed2 = _halves(mixed, half, 2)
        mixed = _whole(mixed1, mixed2 + seen, q.shape[3], 2)
        from_start = _whole(start1, start2 + start1[..., -1:, :], q.shape[3])
        to_end = _whole(end1 + start2[..., -1:, :], end2, q.shape[3])
        half *= 2
    q = ops.swapaxes(q * ops.exp(from_start)[..., None, :], -3, -2)
    return ops.swapaxes(mixed, -3, -2), q, k * ops.exp(to_end), from_start[..., -1, :]


def _halves(x, half, rest=1):
    """`(..., size, D)` to two of `(..., size / (2 half), half, D)`; D stands for `rest` axes."""
    shape, inner = ops.shape(x), (slice(None),) * (rest + 1)
    blocks = shape[-1 - rest] // (2 * half)
    x = ops.reshape(x, (*shape[: -1 - rest], blocks, 2, half, *shape[-rest:]))
    return x[(..., 0, *inner)], x[(..., 1, *inner)]


def _whole(first, second, size, rest=1):
    """The way back from `_halves`."""
    x = ops.concatenate([first, second], axis=-1 - rest)
    shape = ops.shape(x)
    return ops.reshape(x, (*shape[: -2 - rest], size, *shape[-rest:]))


def _read(q, k, v):
    """(q k^T) v of `(..., t, G, D)`, `(..., s, D)` and `(..., s, Dv)`."""
    *lead, steps, groups, width = ops.shape(q)
    scores = backend.matmul(ops.reshape(q, (*lead, steps * groups, width)), k, transpose_b=True)
    return ops.reshape(backend.matmul(scores, v), (*lead, steps, groups, ops.shape(v)[-1]))


def _carry(total, sums, first):
    """The state before each chunk and after the last: S_{c+1} = exp(total_c) S_c + sums_c.

    `total` is `(B, K, chunks, D)`, axes of which may be 1, `sums` `(B, K, chunks, D, Dv)`,
    `first` `(B, K, D, Dv)`.
    """
    decay = ops.exp(total)[..., None] + ops.zeros_like(sums[..., :1])
    if is_symbol(sums.shape[2]):
        return _carry_at_once(total, sums, first)
    if sums.shape[2] == 1:
        return first[:, :, None], decay[:, :, 0] * first + sums[:, :, 0]
    chunkwise = ops.moveaxis(ops.concatenate([decay, sums], axis=-1), 2, 0)

    def step(state, chunk):
        return chunk[..., :1] * state + chunk[..., 1:], state

    after, before = backend.scan(step, first, chunkwise)
    return ops.moveaxis(before, 0, 2), after


def _carry_at_once(total, sums, first):
    """`_carry` for a number of chunks that is a symbol: all pairs of chunks, and no loop."""
    lead = ops.zeros_like(total[:, :, :1])
    decays = chunks.decayed(chunks.spans(ops.concatenate([lead, total], axis=2)))  # (B, K, t, s, D)
    sums = ops.concatenate([first[:, :, None], sums], axis=2)  # (B, K, s, D, Dv)
    states = ops.matmul(ops.moveaxis(decays, 4, 2), ops.swapaxes(sums, 2, 3))  # (B, K, D, t, Dv)
    states = ops.swapaxes(states, 2, 3)
    return states[:, :, :-1], states[:, :, -1]


def _initial_state_of(query, key, value):
    batch, width = ops.shape(query)[0], key.shape[-1]
    return initial_gated_linear_state(batch, key.shape[2], width, value.shape[-1])
