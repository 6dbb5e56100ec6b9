"""Feature maps phi of linear attention: phi(q)^T phi(k) is the weight of a key, never negative."""

import keras
from keras import ops

from kattn import backend
from kattn.arguments import check_integers
from kattn.ops.sizes import known_shape

# exp(CAP), summed over a million keys and times values of a million, is still a float32.
CAP = 60.0
# Added to rectified features, so that a query whose features are all 0 still has weights.
RECTIFIED_FLOOR = 1e-3
# Stands for padding where the largest number is looked for.
LOWEST = -1e30


def elu_plus_one(x):
    """elu(x) + 1, which is x + 1 where x > 0, and exp(x) elsewhere.

    Args:
        x: Queries or keys, float, shape `(..., D)`.

    Returns:
        Features, shape `(..., D)`, all of them positive.

    Example:
        >>> elu_plus_one(keras.ops.array([-1.0, 0.0, 1.0]))
        [0.3679, 1.0, 2.0]

    Reference:
        Katharopoulos et al. 2020, eq. 7, https://arxiv.org/abs/2006.16236
    """
    # Not elu(x) + 1, which rounds exp(x) to a multiple of 6e-8 and to 0 below x = -17.
    return ops.where(x > 0.0, x + 1.0, ops.exp(ops.minimum(x, 0.0)))


def softmax_features(x):
    """Softmax over the features of each step.

    Args:
        x: Queries or keys, float, shape `(..., D)`.

    Returns:
        Features, shape `(..., D)`, all of them positive; those of a step sum to 1.

    Example:
        >>> softmax_features(keras.ops.zeros((3, 2)))[0]
        [0.5, 0.5]

    Reference:
        Shen et al. 2018, sec. 3.3, rho_q, https://arxiv.org/abs/1812.01243
    """
    x = ops.convert_to_tensor(x)
    x = ops.exp(x - ops.stop_gradient(highest(x, None, axis=-1)))
    return x / ops.sum(x, axis=-1, keepdims=True)


def softmax_steps(x, mask=None):
    """Softmax of each feature over the steps.

    Together with `softmax_features` for the queries, the weights of all keys sum to 1 without a
    division. This function looks at all steps, so it cannot be used in causal attention: there, use
    `softmax_features` for the keys as well, and divide the weights by their sum, which the paper
    does not do.

    Args:
        x: Keys, float, shape `(B, S, K, D)`.
        mask: Bool, shape `(B, S)`; True = real step, False = padding, whose features are 0. None if
            all steps are real.

    Returns:
        Features, shape `(B, S, K, D)`, none of them negative. Each sums to 1 over the steps, or to
        0 if no step is real.

    Example:
        >>> softmax_steps(keras.ops.zeros((1, 4, 1, 2)))[0, :, 0, 0]
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
    """The maximum over real steps.

    Args:
        x: Numbers of each step, float, shape `(B, T, N, D)`.
        mask: Bool, shape `(B, T)`; True = real step, False = padding. None if all steps are real.
        axis: Axis, or tuple of axes, over which the maximum is taken.

    Returns:
        The maximum, with axes of 1 in place of `axis`; 0 where no step is real.
    """
    if 0 in known_shape(x):
        return ops.sum(x, axis=axis, keepdims=True)  # no framework has a maximum of nothing
    if mask is None:
        return backend.highest(x, axis)
    top = backend.highest(ops.where(mask[:, :, None, None], x, LOWEST), axis)
    return ops.where(top > LOWEST, top, 0.0)


def orthogonal_projection(key_dim, num_features, seed=None):
    """Gaussian vectors that are orthogonal to each other in groups of D.

    Args:
        key_dim: Width of a query or key, D.
        num_features: Number of vectors, m.
        seed: Integer or `keras.random.SeedGenerator` for the vectors. None draws a random seed.

    Returns:
        Vectors in columns, shape `(D, m)`, float32. Each is distributed as D standard normal
        numbers, and the vectors of each group of D are orthogonal.

    Raises:
        ValueError: If `key_dim` or `num_features` is not a positive integer.

    Example:
        >>> vectors = orthogonal_projection(2, 2, seed=0)
        >>> products = keras.ops.matmul(keras.ops.transpose(vectors), vectors)
        >>> keras.ops.abs(products[0, 1]) < 1e-5  # the two are orthogonal
        True

    Reference:
        Choromanski et al. 2020, sec. 2.4, https://arxiv.org/abs/2009.14794
    """
    check_integers(1, key_dim=key_dim, num_features=num_features)
    if not isinstance(seed, keras.random.SeedGenerator):
        seed = keras.random.SeedGenerator(seed)
    groups = -(-num_features // key_dim)
    q, r = ops.qr(keras.random.normal((groups, key_dim, key_dim), dtype="float32", seed=seed))
    # QR alone is not uniform over rotations: its signs are the algorithm's (Mezzadri 2006, sec. 4).
    signs = ops.sign(ops.diagonal(r, axis1=-2, axis2=-1))
    directions = ops.reshape(ops.transpose(q * signs[:, None, :], (1, 0, 2)), (key_dim, -1))
    lengths = ops.norm(
        keras.random.normal((key_dim, num_features), dtype="float32", seed=seed), axis=0
    )
    return directions[:, :num_features] * lengths


def positive_random_features(x, projection, *, scaled_over=None, mask=None):
    """exp(w^T x' - |x'|^2 / 2) / sqrt(m) for each column w, where x' = x / D^(1/4).

    The expectation of phi(q)^T phi(k) is exp(q^T k / sqrt(D)). Linear attention divides out a
    factor for each query and one for all keys, so `scaled_over` chooses them such that no feature
    is large. Keys that come one by one have no such factor; there, exponents are capped at 60,
    which only vectors with |w|^2 > 120 can reach, and then only for keys along them.

    Shapes: B batch, T steps, N heads, D width, m features.

    Args:
        x: Queries or keys, float, shape `(B, T, N, D)`.
        projection: Vectors in columns, float, shape `(D, m)`, from `orthogonal_projection`.
        scaled_over: Axis, or tuple of axes, over which the features are divided by the largest: -1
            for queries, (1, 3) for keys that are all known. None for keys that come one by one.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, whose features are not looked
            at for the largest. None if all steps are real.

    Returns:
        Features, shape `(B, T, N, m)`, none of them negative.

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

    Shapes: B batch, T steps, N heads, D width, m features.

    Args:
        x: Queries or keys, float, shape `(B, T, N, D)`.
        projection: Vectors in columns, float, shape `(D, m)`, from `orthogonal_projection`.

    Returns:
        Features, shape `(B, T, N, m)`, all of them positive.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> rectified_random_features(x, orthogonal_projection(64, 256)).shape
        (2, 128, 8, 256)

    Reference:
        Choromanski et al. 2020, sec. 4.2 (Performer-ReLU), https://arxiv.org/abs/2009.14794
    """
    x = ops.matmul(x * x.shape[-1] ** -0.25, projection)
    return (ops.relu(x) + RECTIFIED_FLOOR) / projection.shape[-1] ** 0.5
