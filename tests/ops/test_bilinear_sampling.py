"""Bilinear sampling and its gradients against loops and finite differences of them."""

import numpy as np
import pytest

from kattn.ops.bilinear_sampling import sample_bilinear
from tests.compute import assert_close, differentiate, result

# Between cells, at a middle, and beyond each edge.
POINTS = np.array([[0.3, 1.6], [2.0, 1.0], [1.9, 2.7], [-0.8, 0.4], [0.7, 9.0], [5.0, -3.0]])


def oracle(x, points):
    """Point by point, a sum over all cells: each has a tent that is two cells wide."""
    height, width, channels = x.shape[1:]
    y = np.zeros((*points.shape[:2], channels))
    for b, s, i, j in np.ndindex(*points.shape[:2], height, width):
        row = min(max(points[b, s, 0], 0.0), height - 1.0)
        column = min(max(points[b, s, 1], 0.0), width - 1.0)
        weight = max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
        y[b, s] += weight * x[b, i, j]
    return y


def images(rng):
    """Two images of 3 x 4 cells, and points in both."""
    return rng.normal(size=(2, 3, 4, 5)), np.stack([POINTS, POINTS[::-1] + 0.07])


@pytest.mark.parametrize("sides", [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_matches_oracle(rng, sides):
    x, points = images(rng)
    x = x[:, : sides[0], : sides[1]]
    found = result(sample_bilinear, x.astype("float32"), points.astype("float32"))
    assert_close(found, oracle(x, points))


def test_gradients_match_finite_differences(rng):
    x, points = images(rng)
    points[0, 1] += 0.2  # a middle has two slopes
    upstream, step = rng.normal(size=(2, 6, 5)), 1e-6
    _, found = differentiate(sample_bilinear, [x, points], upstream)

    def slope(at):
        ahead, behind = (oracle(*at(sign * step)) for sign in (1, -1))
        return np.sum(upstream * (ahead - behind)) / (2 * step)

    for number, given in enumerate((x, points)):
        expected = np.zeros(given.shape)
        for index in np.ndindex(*given.shape):

            def moved(by, number=number, index=index):
                pair = [x.copy(), points.copy()]
                pair[number][index] += by
                return pair

            expected[index] = slope(moved)
        assert_close(found[number], expected, 1e-4)
    assert (found[1][0, 3:, :][POINTS[3:] < 0] == 0).all()
