"""Feature maps phi of linear attention: phi(q)^T phi(k) is the weight of a key, never negative."""

import keras
from keras import ops

# exp(CAP), summed over a million keys and times values of a million, is still a float32.
CAP = 60.0
# Added to rectified features, so that a query whose features are all 0 still has weights.
RECTIFIED_FLOOR = 1e-3


def elu_plus_one(x):
    """elu(x) + 1: x + 1 where x > 0, else exp(x).

    Args:
        x: `(..., D)` float.

    Returns:
        `(..., D)`, positive.

    Example:
        >>> elu_plus_one(ops.array([-1.0, 0.0, 1.0]))
        [0.3679, 1.0, 2.0]

    Reference:
        Katharopoulos et al. 2020, eq. 7, https://arxiv.org/abs/2006.16236
    """
    # Not elu(x) + 1, which rounds exp(x) to a multiple of 6e-8 and to 0 below x = -17.
    return ops.where(x > 0.0, x + 1.0, ops.exp(ops.minimum(x, 0.0)))


def softmax_features(x):
    """Softmax over the features of each step.

    Args:
        x: `(..., D)` float.

    Returns:
        `(..., D)`, positive, with sums of 1.

    Example:
        >>> softmax_features(ops.zeros((3, 2)))[0]
        [0.5, 0.5]

    Reference:
        Shen et al. 2018, sec. 3.3, rho_q, https://arxiv.org/abs/1812.01243
    """
    x = ops.convert_to_tensor(x)
    x = ops.exp(x - ops.stop_gradient(ops.max(x, axis=-1, keepdims=True)))
    return x / ops.sum(x, axis=-1, keepdims=True)


def softmax_steps(x, mask=None):
    """Softmax of each feature over the steps.

    With `softmax_features` for the queries the weights of all keys sum to 1 as they are. It looks
    at all steps, so it cannot be causal: where that is wanted, keys take `softmax_features` as
    well, and the weights are divided by their sum, which the paper does not have.

    Args:
        x: `(B, S, K, D)` float.
        mask: `(B, S)` bool, True = real step; the others get 0.

    Returns:
        `(B, S, K, D)`, with sums of 1 over S, or of 0 where no step is real.

    Example:
        >>> softmax_steps(ops.zeros((1, 4, 1, 2)))[0, :, 0, 0]
        [0.25, 0.25, 0.25, 0.25]

    Reference:
        Shen et al. 2018, sec. 3.3, rho_k, https://arxiv.org/abs/1812.01243
    """
    x = ops.convert_to_tensor(x)
    keep = None if mask is None else ops.cast(mask, x.dtype)[:, :, None, None]
    level = ops.stop_gradient(highest(x, mask, axis=1))
    x = ops.exp(x - level) if keep is None else ops.exp((x - level) * keep) * keep
    total = ops.sum(x, axis=1, keepdims=True)
    return x / ops.where(total > 0.0, total, 1.0)


def highest(x, mask, axis):
    """The maximum over real steps, axes kept; 0 where there is none."""
    if mask is None:
        return ops.max(x, axis=axis, keepdims=True)
    top = ops.max(ops.where(mask[:, :, None, None], x, -1e30), axis=axis, keepdims=True)
    return ops.where(top > -1e30, top, 0.0)


def orthogonal_projection(key_dim, num_features, seed=None):
    """Gaussian vectors, orthogonal to each other in groups of D.

    Args:
        key_dim: D.
        num_features: m.
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        `(D, m)` float32: each column is distributed as D standard normal numbers, and the columns
        of each group of D are orthogonal.

    Example:
        >>> orthogonal_projection(64, 256, seed=0).shape
        (64, 256)

    Reference:
        Choromanski et al. 2020, sec. 2.4, https://arxiv.org/abs/2009.14794
    """
    if not isinstance(seed, keras.random.SeedGenerator):
        seed = keras.random.SeedGenerator(seed)
    groups = -(-num_features // key_dim)
    q, r = ops.qr(keras.random.normal((groups, key_dim, key_dim), seed=seed))
    # QR alone is not uniform over rotations: its signs are the algorithm's (Mezzadri 2006, sec. 4).
    signs = ops.sign(ops.diagonal(r, axis1=-2, axis2=-1))
    directions = ops.reshape(ops.transpose(q * signs[:, None, :], (1, 0, 2)), (key_dim, -1))
    lengths = ops.norm(keras.random.normal((key_dim, num_features), seed=seed), axis=0)
    return directions[:, :num_features] * lengths


def positive_random_features(x, projection, *, scaled_over=None, mask=None):
    """exp(w^T x' - |x'|^2 / 2) / sqrt(m) for each column w, where x' = x / D^(1/4).

    The expectation of phi(q)^T phi(k) is exp(q^T k / sqrt(D)). A factor for each query, and one for
    all keys, are divided out again by linear attention, and are chosen so that no feature is large:
    see `scaled_over`. Where keys come one by one there is none, and exponents are capped at 60,
    which only vectors with |w|^2 > 120 can reach, and then only for keys along them.

    Args:
        x: `(B, T, N, D)` float.
        projection: `(D, m)`, of `orthogonal_projection`.
        scaled_over: Axes over which the features are divided by the largest: -1 for queries, (1, 3)
            for keys where all are known, None for keys that come one by one.
        mask: `(B, T)` bool, True = real step: whose features can be the largest.

    Returns:
        `(B, T, N, m)`, positive.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> positive_random_features(x, orthogonal_projection(64, 256), scaled_over=-1).shape
        (2, 128, 8, 256)

    Reference:
        Choromanski et al. 2020, lemma 1, https://arxiv.org/abs/2009.14794. Their code divides by
        the same maxima and adds 1e-4 to the features; nothing is added here.
    """
    x = x * x.shape[-1] ** -0.25
    x = ops.matmul(x, projection) - 0.5 * ops.sum(x * x, axis=-1, keepdims=True)
    if scaled_over is not None:
        x = x - ops.stop_gradient(highest(x, mask, scaled_over))
    return ops.exp(ops.minimum(x, CAP)) / projection.shape[-1] ** 0.5


def rectified_random_features(x, projection):
    """(max(w^T x', 0) + 0.001) / sqrt(m) for each column w, where x' = x / D^(1/4).

    Args:
        x: `(B, T, N, D)` float.
        projection: `(D, m)`, of `orthogonal_projection`.

    Returns:
        `(B, T, N, m)`, positive.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> rectified_random_features(x, orthogonal_projection(64, 256)).shape
        (2, 128, 8, 256)

    Reference:
        Choromanski et al. 2020, sec. 4.2 (Performer-ReLU), https://arxiv.org/abs/2009.14794
    """
    x = ops.matmul(x * x.shape[-1] ** -0.25, projection)
    return (ops.relu(x) + RECTIFIED_FLOOR) / projection.shape[-1] ** 0.5
