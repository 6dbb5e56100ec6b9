"""The arithmetic of one block of scores, which every kernel of kattn's own shares.

Layout: queries `(..., K, G, t, D)`, keys `(..., K, s, D)`: the G = N / K query heads that share a
key head lie beside each other, so that one matrix product serves them and no key is copied.
All in float32. q is scaled already.

With s = q k^T, z = softcap(s) + bias and p = softmax(z), o = p v, and for the gradient
(Dao et al. 2022, appendix B.2, https://arxiv.org/abs/2205.14135), given do:

    dv = p^T do      dp = do v^T      dz = p * (dp - sum(do * o))      dq = ds k      dk = ds^T q
"""

from keras import ops

from kattn import backend
from kattn.ops.sizes import is_symbol

# The score of a masked key. Finite, so that no difference of two is NaN. No row's maximum is taken
# lower than FLOOR, so exp(NEVER - maximum) is exactly 0 also in rows where all keys are masked.
NEVER = -1e30
FLOOR = 0.5 * NEVER


def heads_first(x):
    """`(B, S, K, D)` to `(B, K, S, D)`, float32."""
    return ops.transpose(ops.cast(x, "float32"), (0, 2, 1, 3))


def split_heads(x, groups):
    """`(B, T, K*G, D)` to `(B, K, G, T, D)`, float32."""
    batch, steps, heads, width = ops.shape(x)
    x = ops.reshape(ops.cast(x, "float32"), (batch, steps, heads // groups, groups, width))
    return ops.transpose(x, (0, 2, 3, 1, 4))


def merge_heads(x, dtype):
    """`(B, K, G, T, D)` to `(B, T, K*G, D)` of `dtype`."""
    batch, heads, groups, steps, width = ops.shape(x)
    x = ops.reshape(ops.transpose(x, (0, 3, 1, 2, 4)), (batch, steps, heads * groups, width))
    return ops.cast(x, dtype)


def move_axis(x, source, destination):
    """`ops.moveaxis`, for which `torch.vmap` has no rule."""
    axes = list(range(len(x.shape)))
    axes.insert(destination, axes.pop(source))
    return ops.transpose(x, axes)


def group_heads(array, heads, groups):
    """`(..., N or 1, t, s)` to `(..., K or 1, G or 1, t, s)`."""
    if array.shape[-3] == 1:
        return ops.expand_dims(array, -3)
    shape = ops.shape(array)
    return ops.reshape(array, (*shape[:-3], heads, groups, *shape[-2:]))


def queries_by_keys(q, k):
    """`(..., G, t, D)` and `(..., s, D)` to `(..., G, t, s)`."""
    shape = ops.shape(q)
    s = backend.matmul(_fold(q), k, transpose_b=True)
    return ops.reshape(s, (*shape[:-1], ops.shape(k)[-2]))


def weights_by_values(p, v):
    """`(..., G, t, s)` and `(..., s, D)` to `(..., G, t, D)`."""
    shape = ops.shape(p)
    if is_symbol(shape[-1]):  # of which PyTorch cannot tell whether G * t rows lie in one piece
        return backend.matmul(p, ops.expand_dims(v, -3))
    return ops.reshape(backend.matmul(_fold(p), v), (*shape[:-1], ops.shape(v)[-1]))


def weights_by_queries(p, q):
    """`(..., G, t, s)` and `(..., G, t, D)` to `(..., s, D)`, summed over the group."""
    return backend.matmul(_fold(p), _fold(q), transpose_a=True)


def _fold(x):
    """`(..., G, t, D)` to `(..., G*t, D)`."""
    *batch, groups, steps, width = ops.shape(x)
    return ops.reshape(x, (*batch, groups * steps, width))


def logits(q, k, keep, bias, softcap):
    """softcap(q k^T) + bias, + NEVER where `keep` is False; with d softcap / d s, or None."""
    z, slope = queries_by_keys(q, k), None
    if softcap is not None:
        bent = ops.tanh(z / softcap)
        z, slope = softcap * bent, 1.0 - bent * bent
    if bias is not None:
        z = ops.maximum(z + bias, NEVER)  # a bias of -inf masks
    if keep is not None:
        # Added, where a choice would do: `keep` is often the same for all heads, and TensorFlow
        # adds such an array faster than it chooses by it.
        z = z + ops.where(keep, *(ops.convert_to_tensor(x, z.dtype) for x in (0.0, NEVER)))
    return z, slope


def finish(sums, dropout_rate):
    """Output and log-sum-exp of rows; 0 and a huge level where a row sees no key.

    Args:
        sums: For each row its maximum, the sum of exp(score - maximum), and the values weighted
            by exp(score - maximum).
        dropout_rate: Fraction of the weights that were dropped. What is left is scaled here,
            where the array is smaller than the scores.
    """
    level, total, mixed = sums
    seen = total > 0.0
    total = ops.where(seen, total, 1.0)
    kept = total * (1.0 - dropout_rate) if dropout_rate else total
    return mixed / kept, ops.where(seen, level + ops.log(total), -NEVER)


def by_head(call):
    """Sinks as `(1, K, G, 1, 1)`, or None."""
    if call.sinks is None:
        return None
    return ops.reshape(ops.cast(call.sinks, "float32"), (1, call.key_heads, call.groups, 1, 1))


def gradient_of_sinks(sinks, level, delta):
    """A sink's weight is exp(sink - level), its value 0: `(blocks, B, K, G, t, 1)` to by-head."""
    return -ops.sum(ops.exp(sinks - level) * delta, axis=(0, 1, 4), keepdims=True)[0]
