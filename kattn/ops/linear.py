"""Linear attention: a kernel phi(q)^T phi(k) in place of exp(q^T k), in three forms that agree.

The sums over keys are one state, phi(k) v^T and phi(k) added up, so time and memory are O(T), and a
step of decoding is O(1). `parallel` takes all pairs of steps at once, `chunked` the pairs within
chunks and the states between them, and the step form is either of them on from a given state.
"""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.ops import chunks
from kattn.ops.kernels import block

# Measured on two CPU cores at T = 256 to 4096, N = 8, D = 64: chunks of 64 and 256 take up to 1.5x
# as long, all pairs of 256 steps at once 0.8x to 1.8x, and those of 1024 steps 1.3x to 6x.
CHUNK = 128


class LinearState(NamedTuple):
    """What linear attention knows of the steps before, with the batch axis first in every tensor.

    Shapes: B batch, K key/value heads, F features, Dv width of a value.

    Args:
        state: Sum of phi(k) v^T over the steps, float32, shape `(B, K, F, Dv)`.
        normalizer: Sum of phi(k) over the steps, float32, shape `(B, K, F)`.
        length: Number of real steps that each item has so far, int32, shape `(B,)`.
    """

    state: Any
    normalizer: Any
    length: Any


def initial_linear_state(batch_size, num_key_value_heads, num_features, value_dim):
    """The `LinearState` before the first step.

    Args:
        batch_size: Number of sequences, B.
        num_key_value_heads: Number of key/value heads, K.
        num_features: Number of features that the feature map gives for a key, F.
        value_dim: Width of a value, Dv.

    Returns:
        A `LinearState` of zeros.

    Example:
        >>> state = initial_linear_state(2, 8, 64, 32)
        >>> state.state.shape, state.normalizer.shape, state.length
        ((2, 8, 64, 32), (2, 8, 64), [0, 0])
    """
    normalizer = ops.zeros((batch_size, num_key_value_heads, num_features), "float32")
    state = ops.zeros((batch_size, num_key_value_heads, num_features, value_dim), "float32")
    return LinearState(state, normalizer, ops.zeros((batch_size,), "int32"))


def linear_attention(
    query,
    key,
    value,
    *,
    feature_map,
    rotation=None,
    mask=None,
    causal=False,
    state=None,
    implementation="auto",
    chunk=None,
):
    """phi(q)^T sum_j phi(k_j) v_j^T / (phi(q)^T sum_j phi(k_j)) over the keys that a query sees.

    A query that sees no key gets exactly 0. Features and sums are computed in float32.

    Shapes: B batch, T query steps, S key steps, N query heads, K key/value heads, D and Dv head
    widths, F features. Each key head serves N / K query heads.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`. N must be a multiple of K.
        value: Values, float, shape `(B, S, K, Dv)`.
        feature_map: Function phi from queries or keys, `(B, T, N, D)` float32, to features, `(B, T,
            N, F)`, none of them negative; or a tuple of two such functions, for queries and for
            keys. `elu_plus_one` and `softmax_features` are two. In the causal form the features of
            a step must depend on that step alone.
        rotation: Tuple of two functions that rotate the features of the queries and of the keys,
            `(B, T, N, F)` float32, by their positions. They act on the weighted values and not on
            the sum of the weights, which therefore stays positive. None for no rotation.
        mask: Bool, shape `(B, S)`; True = real key, False = padding, which no query sees. None if
            all keys are real.
        causal: If True, query t sees keys <= t only, and T must equal S.
        state: A `LinearState` of the keys before the first, which all queries see. None for no
            keys.
        implementation: "parallel", "chunked" or "auto". "parallel" takes all pairs of steps at
            once. "chunked" adds up over keys, and in the causal form takes pairs of steps within
            chunks, in memory O(T). "auto" is "chunked", which in the causal form is the same as
            "parallel" if all steps fit into one chunk.
        chunk: Largest number of steps in a chunk. None for the size that was measured to be fast.

    Returns:
        Attended values, shape `(B, T, N, Dv)`, in the dtype of the query.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit, or if `implementation` or `chunk` is not
            one of the values above.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> linear_attention(x, x, x, feature_map=elu_plus_one, causal=True).shape
        (2, 128, 8, 64)

    Reference:
        Katharopoulos et al. 2020, eq. 4 to 12, https://arxiv.org/abs/2006.16236
        Chunks: Hua et al. 2022, sec. 3.3, https://arxiv.org/abs/2202.10447
        Rotation: Su et al. 2021, eq. 19, https://arxiv.org/abs/2104.09864
    """
    query, key, value = (ops.convert_to_tensor(x) for x in (query, key, value))
    mask = chunks.check(query, key, value, mask, implementation, chunk)
    if causal:
        chunks.check_same_steps(query, key)
    features = _features(query, key, feature_map, rotation, mask)
    state = None if state is None else LinearState(*map(ops.convert_to_tensor, state))
    plan = _Plan(implementation, chunk, query.dtype, causal=causal)
    return _attend(plan, *features, value, state)[0]


def decode_linear_attention(
    query,
    key,
    value,
    state,
    *,
    feature_map,
    rotation=None,
    mask=None,
    implementation="auto",
    chunk=None,
):
    """Causal `linear_attention` of any number of new steps, and the state after them.

    Shapes: B batch, T new steps, N query heads, K key/value heads, D and Dv head widths, F
    features.

    Args:
        query: Queries of the new steps, float, shape `(B, T, N, D)`.
        key: Keys of the new steps, float, shape `(B, T, K, D)`. N must be a multiple of K.
        value: Values of the new steps, float, shape `(B, T, K, Dv)`.
        state: The `LinearState` of the steps before.
        feature_map: Function phi from queries or keys, `(B, T, N, D)` float32, to features, `(B, T,
            N, F)`, none of them negative; or a tuple of two such functions, for queries and for
            keys. `elu_plus_one` and `softmax_features` are two. In the causal form the features of
            a step must depend on that step alone.
        rotation: Tuple of two functions that rotate the features of the queries and of the keys,
            `(B, T, N, F)` float32, by their positions. They act on the weighted values and not on
            the sum of the weights, which therefore stays positive. None for no rotation.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all new steps are real.
        implementation: "parallel", "chunked" or "auto". "parallel" takes all pairs of steps at
            once. "chunked" adds up over keys, and in the causal form takes pairs of steps within
            chunks, in memory O(T). "auto" is "chunked", which in the causal form is the same as
            "parallel" if all steps fit into one chunk.
        chunk: Largest number of steps in a chunk. None for the size that was measured to be fast.

    Returns:
        `(output, state)`: the attended values, shape `(B, T, N, Dv)`, in the dtype of the query;
        and the `LinearState` after the new steps, of the same shapes and dtypes as before.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit, or if `implementation` or `chunk` is not
            one of the values above.

    Example:
        >>> state = initial_linear_state(2, 8, 64, 64)
        >>> x = keras.random.normal((2, 1, 8, 64))
        >>> y, state = decode_linear_attention(x, x, x, state, feature_map=elu_plus_one)
        >>> y.shape, state.length
        ((2, 1, 8, 64), [1, 1])

    Reference:
        Katharopoulos et al. 2020, eq. 16 to 20, https://arxiv.org/abs/2006.16236
    """
    query, key, value = (ops.convert_to_tensor(x) for x in (query, key, value))
    mask = chunks.check(query, key, value, mask, implementation, chunk)
    chunks.check_same_steps(query, key)
    state = LinearState(*map(ops.convert_to_tensor, state))
    features = _features(query, key, feature_map, rotation, mask)
    plan = _Plan(implementation, chunk, query.dtype, causal=True)
    output, sums, normalizer = _attend(plan, *features, value, state)
    return output, LinearState(sums, normalizer, state.length + chunks.real_steps(query, mask))


def linear_attention_weights(query, key, *, feature_map, rotation=None, mask=None, causal=False):
    """The weights phi(q)^T phi(k) / sum that `linear_attention` gives to the values.

    Shapes: B batch, T query steps, S key steps, N query heads, K key heads, D head width, F
    features.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`. N must be a multiple of K.
        feature_map: Function phi from queries or keys, `(B, T, N, D)` float32, to features, `(B, T,
            N, F)`, none of them negative; or a tuple of two such functions, for queries and for
            keys. `elu_plus_one` and `softmax_features` are two. In the causal form the features of
            a step must depend on that step alone.
        rotation: Tuple of two functions that rotate the features of the queries and of the keys,
            `(B, T, N, F)` float32, by their positions. They act on the weighted values and not on
            the sum of the weights, which therefore stays positive. None for no rotation. With a
            rotation weights may be negative, and they may not sum to 1.
        mask: Bool, shape `(B, S)`; True = real key, False = padding, which no query sees. None if
            all keys are real.
        causal: If True, query t sees keys <= t only, and T must equal S.

    Returns:
        Weights, shape `(B, N, T, S)`, float32. Without a rotation each row sums to 1, or is 0 if
        its query sees no key.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit.

    Example:
        >>> x = keras.ops.ones((1, 3, 2, 4))
        >>> linear_attention_weights(x, x, feature_map=elu_plus_one, causal=True)[0, 0]
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.3333, 0.3333, 0.3333]]

    Reference:
        Katharopoulos et al. 2020, eq. 4, https://arxiv.org/abs/2006.16236
    """
    query, key = ops.convert_to_tensor(query), ops.convert_to_tensor(key)
    mask = chunks.check(query, key, key, mask, "auto", None)
    if causal:
        chunks.check_same_steps(query, key)
    phi, turned = _features(query, key, feature_map, rotation, mask)
    batch, queries, heads = ops.shape(query)[:3]
    plain = scores = _scores(*_in_chunks(phi, None), causal=causal)
    if turned is not None:
        scores = _scores(*_in_chunks(turned, None), causal=causal)
    weights = _divide(scores, ops.sum(plain, axis=-1, keepdims=True))
    keys = ops.shape(key)[1]
    return ops.reshape(weights[..., :queries, :keys], (batch, heads, queries, keys))


def _features(query, key, feature_map, rotation, mask) -> tuple[Any, Any]:
    """phi(q), phi(k) in float32, phi(k) = 0 where `mask` is False; and the same turned, or None."""
    maps = feature_map if isinstance(feature_map, tuple) else (feature_map, feature_map)
    phi_q, phi_k = (f(ops.cast(x, "float32")) for f, x in zip(maps, (query, key), strict=True))
    if mask is not None:
        phi_k = ops.where(mask[:, :, None, None], phi_k, 0.0)
    phi = (phi_q, phi_k)
    if rotation is None:
        return phi, None
    return phi, tuple(turn(x) for turn, x in zip(rotation, phi, strict=True))


class _Plan(NamedTuple):
    """What is known before the tensors are."""

    implementation: str
    chunk: int | None
    dtype: Any  # of the output
    causal: bool


@backend.compiled
def _attend(plan, phi, turned, value, state):
    """The attended values; in the causal form also the sums over keys after the last step."""
    turned, steps = phi if turned is None else turned, ops.shape(phi[0])[1]
    if plan.causal:
        size = _size(steps, plan.implementation, plan.chunk)
        mixed, total, *sums = _mix_causal(phi, turned, value, state, size)
    else:
        mixed, total, *sums = _mix(phi, turned, value, state, plan.implementation)
    return ops.cast(chunks.joined(_divide(mixed, total), steps), plan.dtype), *sums


def _size(steps, implementation, chunk):
    """Number of steps in a chunk of the causal form; None for one chunk of all steps."""
    return None if implementation == "parallel" else chunks.chunk_size(steps, chunk or CHUNK)


def _scores(q, k, *, causal):
    """phi(q)^T phi(k) within each chunk, 0 where not seen: `(B, K, chunks, G, t, s)`."""
    scores = block.queries_by_keys(q, k)
    return ops.where(chunks.lower_triangle(ops.shape(k)[-2]), scores, 0.0) if causal else scores


def _mix(phi, turned, value, state, implementation):
    """What every query sees alike: weighted values and the sum of the weights."""
    q, k = _in_chunks(turned, None)
    plain_q, plain_k = (q, k) if turned is phi else _in_chunks(phi, None)
    v = chunks.of_keys(value, None)
    if implementation == "parallel":
        scores = _scores(q, k, causal=False)
        plain = scores if turned is phi else _scores(plain_q, plain_k, causal=False)
        mixed, total = block.weights_by_values(scores, v), ops.sum(plain, -1, keepdims=True)
        if state is not None:
            mixed = mixed + block.weights_by_values(q, state.state[:, :, None])
            level = state.normalizer[:, :, None, :, None]
            total = total + block.weights_by_values(plain_q, level)
        return mixed, total
    sums, level = backend.matmul(k, v, transpose_a=True), ops.sum(plain_k, axis=-2)
    if state is not None:
        sums, level = sums + state.state[:, :, None], level + state.normalizer[:, :, None]
    return block.weights_by_values(q, sums), block.weights_by_values(plain_q, level[..., None])


def _mix_causal(phi, turned, value, state, size):
    """Weighted values, the sum of the weights, and the sums over keys after the last step."""
    q, k = _in_chunks(turned, size)
    plain_q, plain_k = (q, k) if turned is phi else _in_chunks(phi, size)
    v = chunks.of_keys(value, size)
    scores = _scores(q, k, causal=True)
    plain = scores if turned is phi else _scores(plain_q, plain_k, causal=True)
    before, after = _running(backend.matmul(k, v, transpose_a=True), state and state.state)
    levels, level = _running(ops.sum(plain_k, axis=-2), state and state.normalizer)
    mixed, total = block.weights_by_values(scores, v), ops.sum(plain, axis=-1, keepdims=True)
    if before is not None:
        mixed = mixed + block.weights_by_values(q, before)
        total = total + block.weights_by_values(plain_q, levels[..., None])
    return mixed, total, after, level


def _in_chunks(features, size):
    q, k = features
    return chunks.of_queries(q, k.shape[2], size), chunks.of_keys(k, size)


def _running(sums, first):
    """The sum before each chunk, or None where it is 0, and that after the last.

    `sums` is `(B, K, chunks, ...)`, `first` `(B, K, ...)` or None.
    """
    alone = sums.shape[2] == 1
    if alone and first is None:
        return None, sums[:, :, 0]
    first = ops.zeros_like(sums[:, :, :1]) if first is None else first[:, :, None]
    if alone:
        return first, (first + sums)[:, :, 0]
    running = ops.cumsum(ops.concatenate([first, sums], axis=2), axis=2)
    return running[:, :, :-1], running[:, :, -1]


def _divide(mixed, total):
    """Mixed / total, and exactly 0, with a gradient of 0, where nothing is seen."""
    return mixed / ops.where(total > 0.0, total, 1.0)
