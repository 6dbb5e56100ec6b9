import keras
import numpy as np
import pytest

from kattn.biases import GridTable
from tests.biases.battery import CHECK_NAMES, CHECKS, case, each

SIDES = (3, 2)
VALUES = np.random.default_rng(2).normal(size=(3, 5 * 3)).astype("float32")
BY_QUERY = np.random.default_rng(3).normal(size=(2, 3, 6, 5)).astype("float32")


def differences(i, j, stride=1):
    """Coordinates of key j minus those of query i; keys are on every `stride`-th cell."""
    columns = -(-2 // stride)
    return (j // columns * stride - i // 2, j % columns * stride - i % 2)


def place(i, j, stride=1):
    down, right = differences(i, j, stride)
    return (down + 2) * 3 + right + 1


CASES = {
    "for all queries": (
        lambda: GridTable(VALUES, sides=SIDES, axes=(0, 1)),
        each(lambda b, n, i, j: VALUES[n, place(i, j)], 6),
    ),
    "by query": (
        lambda: GridTable(BY_QUERY, sides=SIDES, axes=(0,)),
        each(lambda b, n, i, j: BY_QUERY[b, n, i, differences(i, j)[0] + 2], 6),
    ),
    "strided": (
        lambda: GridTable(VALUES, sides=SIDES, axes=(0, 1), key_stride=2),
        each(lambda b, n, i, j: VALUES[n, place(i, j, 2)], 2),
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", CASES)
def test_grid_tables(name, check):
    check(*case(CASES, name))


def test_files_know_it_by_the_name_of_old():
    config = keras.saving.serialize_keras_object(GridTable(VALUES, sides=SIDES, axes=(0, 1)))
    assert config["registered_name"] == "kattn.biases>Grid"


BAD = {
    "queries": (8, 6, "has 6 steps; received: T=8"),
    "keys": (6, 4, "has 6 steps; received: S=4"),
}


@pytest.mark.parametrize(("queries", "keys", "message"), BAD.values(), ids=BAD)
def test_steps_of_another_grid(queries, keys, message):
    bias = GridTable(VALUES, sides=SIDES, axes=(0, 1))
    with pytest.raises(ValueError, match=rf"A grid of \(3, 2\) with key_stride 1 {message}"):
        bias.check(2, 3, queries, keys)


def test_heads():
    with pytest.raises(ValueError, match=r"`values` of a bias must have one row.*N=4"):
        GridTable(VALUES, sides=SIDES, axes=(0, 1)).check(2, 4, 6, 6)
