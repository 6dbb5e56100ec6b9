"""The delta rule with a gate: a state that is corrected where it is wrong, in chunks and by step.

S_t = a_t S_{t-1} + k_t (b_t (v_t - a_t S_{t-1}^T k_t))^T: what the state already says of a key is
taken out before the new value goes in. Within a chunk of n steps that begins with the state S, with
decays d(t, s) = a_{s+1} ... a_t and the strictly lower triangle A_ts = b_t d(t, s) k_t k_s^T, the
values that go in are

    W = (I + A)^-1 (b v - b d(t, 0) k S)      and the outputs     d(t, 0) q S + (d(t, s) q k^T) W

so that all chunks are prepared side by side, and only the state passes from one to the next. The
inverse is made of halves: where those of two blocks beside each other are X_1 and X_2, what lies
below them is -X_2 A_21 X_1. It has no sums of large terms that cancel, as the series 1 - A + A^2
has for keys that are alike.

Layout as in `kattn.ops.chunks`. All in float32.
"""

from typing import NamedTuple

from keras import ops

from kattn import backend
from kattn.arguments import error
from kattn.ops import chunks
from kattn.ops.gated_linear import GatedLinearState, check_decay, initial_gated_linear_state
from kattn.ops.kernels import block
from kattn.ops.rows import split_channels
from kattn.ops.sizes import has_shape, is_symbol, known_shape

# Measured on two CPU cores at T = 1024, N = 4, D = 64.
CHUNK = 32
ROUNDS = 12  # of the inverse where the number of steps is a symbol: enough for 4,096 steps


def gated_delta_rule(
    query, key, value, log_decay, rate, *, mask=None, state=None, implementation="auto", chunk=None
):
    """S_t^T q_t with S_t = a_t S_{t-1} + k_t (b_t (v_t - a_t S_{t-1}^T k_t))^T, causal.

    Sums are computed in float32.

    Shapes: B batch, T steps, N query heads, K key/value heads, D and Dv head widths. Each key head
    has one state, which N / K query heads read.

    Args:
        query: Queries q, float, shape `(B, T, N, D)`.
        key: Keys k, float, shape `(B, T, K, D)`, of length 1 as a rule. N must be a multiple of K.
        value: Values v, float, shape `(B, T, K, Dv)`.
        log_decay: Logarithms of the decays a, float, none above 0: shape `(B, T, K)`, or `(K,)` for
            one per head that is the same at all steps. -inf forgets everything.
        rate: How much of the error is corrected, b, float in [0, 1], shape `(B, T, K)`. For keys of
            length 1, 0 leaves the state as it is, and 1 puts the value in the place of the old one.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all steps are real.
        state: The `GatedLinearState` of the steps before. None for no steps.
        implementation: "parallel", "chunked" or "auto". "parallel" takes all pairs of steps at
            once. "chunked" takes pairs of steps within chunks, and a state between them, in memory
            O(T). "auto" is "chunked", which is the same as "parallel" if all steps fit into one
            chunk. For a number of steps that is not known, TensorFlow always takes chunks. A model
            that JAX or PyTorch exports for any number of steps takes all pairs of steps at once,
            and is wrong for more than 4,096 steps.
        chunk: Largest number of steps in a chunk. None for the size that was measured to be fast.

    Returns:
        What the queries read from the states, shape `(B, T, N, Dv)`, in the dtype of the query.

    Raises:
        ValueError: If ranks or sizes do not fit, if `mask` is not boolean, or if `implementation`
            or `chunk` is not one of the values above.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> key, rate = keras.ops.normalize(x), keras.ops.ones((2, 128, 8))
        >>> y = gated_delta_rule(key, key, x, keras.ops.zeros((8,)), rate)
        >>> bool(keras.ops.max(abs(y - x)) < 1e-3)  # each value is read back as it went in
        True

    Reference:
        Yang et al. 2024, eq. 10 and sec. 3.3, https://arxiv.org/abs/2412.06464
        The form by chunks: Yang et al. 2024, sec. 3.2, https://arxiv.org/abs/2406.06484
    """
    if state is None:
        batch, width = ops.shape(query)[0], key.shape[-1]
        state = initial_gated_linear_state(batch, key.shape[2], width, value.shape[-1])
    options = {"mask": mask, "implementation": implementation, "chunk": chunk}
    return decode_gated_delta_rule(query, key, value, log_decay, rate, state, **options)[0]


def decode_gated_delta_rule(
    query, key, value, log_decay, rate, state, *, mask=None, implementation="auto", chunk=None
):
    """`gated_delta_rule` of any number of new steps, and the state after them.

    Shapes: B batch, T new steps, N query heads, K key/value heads, D and Dv head widths.

    Args:
        query: Queries q of the new steps, float, shape `(B, T, N, D)`.
        key: Keys k of the new steps, float, shape `(B, T, K, D)`, of length 1 as a rule. N must be
            a multiple of K.
        value: Values v of the new steps, float, shape `(B, T, K, Dv)`.
        log_decay: Logarithms of the decays a, float, none above 0: shape `(B, T, K)`, or `(K,)` for
            one per head that is the same at all steps. -inf forgets everything.
        rate: How much of the error is corrected, b, float in [0, 1], shape `(B, T, K)`. For keys of
            length 1, 0 leaves the state as it is, and 1 puts the value in the place of the old one.
        state: The `GatedLinearState` of the steps before.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all new steps are real.
        implementation: "parallel", "chunked" or "auto". "parallel" takes all pairs of steps at
            once. "chunked" takes pairs of steps within chunks, and a state between them, in memory
            O(T). "auto" is "chunked", which is the same as "parallel" if all steps fit into one
            chunk. For a number of steps that is not known, TensorFlow always takes chunks. A model
            that JAX or PyTorch exports for any number of steps takes all pairs of steps at once,
            and is wrong for more than 4,096 steps.
        chunk: Largest number of steps in a chunk. None for the size that was measured to be fast.

    Returns:
        `(output, state)`: what the queries read from the states, shape `(B, T, N, Dv)`, in the
        dtype of the query; and the `GatedLinearState` after the new steps, of the same shapes and
        dtypes as before.

    Raises:
        ValueError: If ranks or sizes do not fit, if `mask` is not boolean, or if `implementation`
            or `chunk` is not one of the values above.

    Example:
        >>> state = initial_gated_linear_state(2, 8, 64, 64)
        >>> x, rate = keras.random.normal((2, 1, 8, 64)), keras.ops.ones((2, 1, 8))
        >>> y, state = decode_gated_delta_rule(x, x, x, keras.ops.zeros((8,)), rate, state)
        >>> y.shape, state.length
        ((2, 1, 8, 64), [1, 1])

    Reference:
        Yang et al. 2024, eq. 10, https://arxiv.org/abs/2412.06464
    """
    query, key, value, rate = (ops.convert_to_tensor(x) for x in (query, key, value, rate))
    mask = chunks.check(query, key, value, mask, implementation, chunk)
    chunks.check_same_steps(query, key)
    log_decay = check_decay(ops.convert_to_tensor(log_decay), key, by_channel=False)
    _check_rate(rate, key)
    state = GatedLinearState(*map(ops.convert_to_tensor, state))
    _check_state(state.state, key, value)
    plan = _Plan(implementation, chunk)
    output, after = _attend(plan, query, key, value, log_decay, rate, mask, state.state)
    return output, GatedLinearState(after, state.length + chunks.real_steps(query, mask))


class _Plan(NamedTuple):
    """What is known before the tensors are."""

    implementation: str
    chunk: int | None


@backend.compiled
def _attend(plan, query, key, value, log_decay, rate, mask, first):
    """What the queries read from the states, and the state after the new steps."""
    steps, limit = ops.shape(query)[1], plan.chunk or CHUNK
    # The inverse must know how often to double its blocks.
    whole = plan.implementation == "parallel" and not backend.is_computed(steps)
    size = None if whole else chunks.chunk_size(steps, limit)
    q = chunks.of_queries(query, key.shape[2], size)
    k, v = (chunks.of_keys(chunks.silence(x, mask), size) for x in (key, value))
    b = chunks.of_keys(chunks.silence(rate[..., None], mask), size)
    g = chunks.log_decays(log_decay, mask, steps, size)
    spans = chunks.spans(g)
    decays = chunks.decayed(spans)[..., 0]  # (B, K, chunks, t, s)
    from_start = ops.exp(spans[..., :, 0, :] + g[..., :1, :])  # (B, K, chunks, n, 1)
    to_end = ops.exp(spans[..., -1, :, :])
    alike = b * backend.matmul(k, k, transpose_b=True) * decays
    inverse = _inverse(alike, limit)
    values = backend.matmul(inverse, b * v)
    keys = backend.matmul(inverse, b * k * from_start)
    before, after = _carry(from_start[..., -1:, :], keys, values, k * to_end, first)
    values = values - backend.matmul(keys, before)  # W
    scores = block.queries_by_keys(q, k) * decays[:, :, :, None]
    mixed = block.weights_by_values(scores, values)
    mixed = mixed + block.weights_by_values(q * from_start[:, :, :, None], before)
    return ops.cast(chunks.joined(mixed, steps), query.dtype), after


def _inverse(a, limit):
    """(I + A)^-1 for the strictly lower triangle A of `(..., n, n)`; n is <= limit if unknown."""

    def forward(a):
        return _inverse_by_halves(a, limit), ()

    def backward(inputs, residuals, gradient):
        (x,) = residuals
        inner = backend.matmul(x, gradient, transpose_a=True)
        return (-_strictly_lower(backend.matmul(inner, x, transpose_b=True)),)

    return backend.custom_gradient(forward, backward)(a)


def _inverse_by_halves(a, limit):
    """Blocks of 1 step, whose inverse is 1, then of 2, 4 and so on."""
    size = ops.shape(a)[-1]
    step = ops.arange(size, dtype="int32")
    row, column = step[:, None], step[None, :]
    x = ops.cast(row == column, "float32") + ops.zeros_like(a)
    if isinstance(size, int):
        rounds = (size - 1).bit_length()
    else:
        rounds = ROUNDS if is_symbol(size) else (limit - 1).bit_length()
    for i in range(rounds):
        row_block, column_block = row // 2**i, column // 2**i
        is_below = ops.logical_and(row_block % 2 == 1, row_block - 1 == column_block)
        below = ops.where(is_below, a, 0.0)
        x = x - (below if i == 0 else backend.matmul(x, backend.matmul(below, x)))
    return x


def _strictly_lower(x):
    step = ops.arange(ops.shape(x)[-1], dtype="int32")
    return ops.where(step[:, None] > step[None, :], x, 0.0)


def _carry(total, keys, values, ends, first):
    """The state before each chunk and after the last: S' = total S + ends^T (values - keys S)."""

    def next_state(state, total, keys, values, ends):
        values = values - backend.matmul(keys, state)
        return total * state + backend.matmul(ends, values, transpose_a=True)

    if keys.shape[2] == 1:
        parts = (x[:, :, 0] for x in (total, keys, values, ends))
        return first[:, :, None], next_state(first, *parts)
    total = total + ops.zeros_like(keys[..., :1])  # one for each step, to lie beside the others
    widths = [x.shape[-1] for x in (total, keys, values, ends)]
    together = ops.moveaxis(ops.concatenate([total, keys, values, ends], axis=-1), 2, 0)

    def step(state, chunk):
        total, keys, values, ends = split_channels(chunk, widths)
        return next_state(state, total[..., :1, :], keys, values, ends), state

    after, before = backend.scan(step, first, together)
    return ops.moveaxis(before, 0, 2), after


def _check_state(state, key, value):
    batch, _, heads, width = known_shape(key)
    if not has_shape(state, (batch, heads, width, value.shape[-1])):
        rule = "`state` must have shape (B, K, D, Dv), with the sizes of `key` and `value`"
        raise error(rule, state=state, key=key, value=value)


def _check_rate(rate, key):
    if not has_shape(rate, known_shape(key)[:3]):
        raise error("`rate` must have shape (B, T, K), with the sizes of `key`", rate=rate, key=key)
