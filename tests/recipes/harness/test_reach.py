"""How far gradients reach: against Jacobians that are known."""

import numpy as np
import pytest
from keras import ops

from recipes.harness.reach import gradient_reach


def test_a_linear_recurrence(rng):
    """y_t = sum over k of A^k x_(t - k), so that its Jacobian at distance k is A^k."""
    a = (0.6 * np.linalg.qr(rng.normal(size=(3, 3)))[0]).astype("float32")
    a[0] *= 0.5

    def function(x):
        steps, state = [], ops.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = x[:, t] + ops.matmul(state, a.T)
            steps.append(state)
        return ops.stack(steps, axis=1)

    x = rng.normal(size=(400, 6, 3))
    found = gradient_reach(function, x, rng.integers(3, 6, 400), draws=10)
    wanted = [np.linalg.norm(np.linalg.matrix_power(a, k)) for k in range(4)]
    np.testing.assert_allclose(found, wanted, rtol=0.05)


def test_each_sequence_has_a_step_of_its_own(rng):
    """A function that reads one input only, by which the distance is told."""

    def function(x):
        return ops.stack([2.0 * x[:, 1]] * 5, axis=1)

    found = gradient_reach(function, rng.normal(size=(300, 5, 1)), np.full(300, 4), draws=20)
    np.testing.assert_allclose(found, [0, 0, 0, 2, 0], atol=0.1)
    found = gradient_reach(function, rng.normal(size=(3, 5, 1)), np.array([1, 2, 1]), seed=3)
    assert len(found) == 2  # as far as every sequence goes back
    assert found[0] > 0
    assert found[1] > 0


def test_draws_are_seeded(rng):
    def function(x):
        return x * x

    x, last = rng.normal(size=(2, 3, 2)), np.array([2, 2])
    one, same, other = (gradient_reach(function, x, last, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one[0] != pytest.approx(other[0])
    assert not one[1:].any()
