"""How far back gradients reach. It needs Keras: import it once the backend is chosen."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from kattn import backend


def gradient_reach(
    function: Callable[[Any], Any],
    x: np.ndarray,
    steps: np.ndarray,
    *,
    draws: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """The norm of the Jacobian dy_t / dx_(t - k) by the distance k.

    For random directions v of y_t, the mean of |v^T dy_t / dx_s|^2 is the squared Frobenius norm of
    the Jacobian: so it is estimated, over all sequences and some directions.

    Args:
        function: Function from sequences `(B, T, C)` to sequences `(B, T, V)`, each of whose items
            depends on its own input only.
        x: Input sequences, float, shape `(B, T, C)`.
        steps: The step t of each sequence, integers in [0, T), shape `(B,)`.
        draws: Number of directions for each sequence.
        seed: Seed of the directions.

    Returns:
        float64 array: the norm at distance 0, 1 ..., up to the smallest of the steps.
    """
    rng, rows = np.random.default_rng(seed), np.arange(len(x))
    x = ops.convert_to_tensor(x.astype("float32"))
    outputs = ops.shape(function(x))
    distances = np.arange(steps.min() + 1)
    squares = np.zeros(len(distances))
    for _ in range(draws):
        direction: np.ndarray = np.zeros(outputs, "float32")
        direction[rows, steps] = rng.normal(size=direction[rows, steps].shape)
        (gradient,) = backend.vjp(function, [x], ops.convert_to_tensor(direction))
        found = (ops.convert_to_numpy(gradient).astype("float64") ** 2).sum(-1)  # (B, T)
        squares += found[rows[:, None], steps[:, None] - distances].mean(0) / draws
    return np.sqrt(squares)
