"""Attention dropout by counter: which weights are dropped is computed, never stored.

Each query and each key of a head gets an odd integer, a hash of seed, batch item, head and
position. The product of the two, modulo 2^32, decides whether the weight of a pair stays: it is
below a threshold, or not. So the mask of any block can be made again from two short vectors,
forward and gradient agree by construction, and the mask depends neither on the kernel nor on how
it cuts the scores.

Reference: Dietzfelbinger et al. 1997, https://doi.org/10.1006/jagm.1997.0873 (the high bits of a
product with a random odd factor); for the hash see `kattn.ops.random_numbers`.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import backend
from kattn.ops.random_numbers import mix, mix_indices


def draw_seed(seed):
    """Two random int32 numbers, `(2,)`, that stand for all draws of one call.

    Args:
        seed: Integer, `keras.random.SeedGenerator` or None, as `keras.random` takes it.
    """
    if isinstance(seed, keras.random.SeedGenerator):
        # Neither `keras.random` nor `seed.next()`: on PyTorch the one draws from a
        # `torch.Generator` and the other adds a NumPy array, and neither the compiler nor
        # `torch.func` can trace that.
        state = ops.convert_to_tensor(seed.state)  # the seed, and the number of draws so far
        numbers = mix(ops.cast(state, "int32"))  # layers may have the seeds 1, 2, 3
        seed.state.assign(state + ops.arange(2, dtype=state.dtype))
        return numbers
    return keras.random.randint((2,), 0, 2**31 - 1, dtype="int32", seed=seed)


def counters(call):
    """The integers of the queries, `(B, K, G, T, 1)`, and of the keys, `(B, K, G, S, 1)`.

    They are odd int32 numbers, of which `drop` makes the mask of a block. They are None for a
    call without dropout.
    """
    if not call.dropout_rate:
        return None, None
    seed = draw_seed(call.seed)
    batch, queries, heads = ops.shape(call.query)[:3]
    keys = ops.shape(call.key)[1]
    index = ops.arange(batch * heads, dtype="int32")
    head = mix(ops.bitwise_xor(mix(index + seed[0]), seed[1]))
    head = ops.reshape(head, (batch, call.key_heads, call.groups, 1, 1))
    # Even numbers count queries and odd numbers keys, so that none is hashed like another.
    steps = [2 * ops.arange(queries, dtype="int32"), 2 * ops.arange(keys, dtype="int32") + 1]
    index = ops.concatenate(steps)[:, None]
    numbers = ops.bitwise_or(mix_indices(index, head), 1)
    return numbers[..., :queries, :], numbers[..., queries:, :]


class Draws(NamedTuple):
    """What decides which weights of a block are dropped.

    Args:
        rows: Counters of the queries of the block, `(..., t, 1)`.
        columns: Counters of its keys, `(..., s, 1)`.
        rate: Fraction of the weights that are dropped, in [0, 1).
    """

    rows: Any
    columns: Any
    rate: float


def drop(draws, weights):
    """The weights with zeros where they are dropped; the rest is not scaled yet.

    Kernels divide by `kept(rate)` where an array is smaller than the scores.

    Args:
        draws: `Draws` of the block, or None where nothing is dropped.
        weights: float32, `(..., t, s)`; PyTorch may change them in place.
    """
    if draws is None:
        return weights
    return backend.drop(draws.rows, draws.columns, _threshold(draws.rate), weights)


def gradient(draws, weights, dp, delta):
    """The gradient of the logits, p * (drop(dp) - delta), and drop(p), with weights p.

    Args:
        draws: `Draws` of the block, or None where nothing is dropped.
        weights: float32, `(..., t, s)`, before dropout; PyTorch may change them in place.
        dp: Gradient of the scaled weights after dropout, `(..., t, s)`; likewise.
        delta: Sum of do * o for each query, `(..., t, 1)`.
    """
    if draws is None:
        return backend.softmax_gradient(weights, dp, delta), weights
    threshold = _threshold(draws.rate)
    return backend.dropout_gradient(draws.rows, draws.columns, threshold, weights, dp, delta)


def dropped(draws, weights):
    """As `drop`, but scaled by 1 / (1 - rate), with a gradient, and never in place."""

    def forward(weights, rows, columns):
        return drop(Draws(rows, columns, draws.rate), weights / kept(draws.rate)), ()

    def backward(inputs, residuals, gradient):
        _, rows, columns = inputs
        return forward(gradient, rows, columns)[0], None, None

    return backend.custom_gradient(forward, backward)(weights, draws.rows, draws.columns)


def kept(rate):
    """The fraction of the weights that stay."""
    return 1.0 - rate


def _threshold(rate):
    """Products below it are dropped. They are signed numbers, of which the smallest is -2^31."""
    return min(round(rate * 2**32), 2**32 - 1) - 2**31
