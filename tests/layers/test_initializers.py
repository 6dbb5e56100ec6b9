"""Copies of initializers: apart for other indices, the same for the same index."""

import doctest

import keras
import numpy as np
import pytest

from kattn.layers import initializers
from kattn.layers.initializers import numbered
from tests.compute import run


def draw(initializer):
    return run(lambda: initializer((3, 4), dtype="float32"))


SEEDS = {"integer": lambda: 3, "generator": lambda: keras.random.SeedGenerator(3)}


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("name", ["RandomNormal", "GlorotUniform", "Orthogonal"])
def test_seeded(name, kind):
    initializer = getattr(keras.initializers, name)(seed=SEEDS[kind]())
    first = draw(numbered(initializer, 0))
    assert np.abs(draw(numbered(initializer, 1)) - first).max() > 1e-3
    assert np.abs(draw(numbered(initializer, 1)) - draw(numbered(initializer, 2))).max() > 1e-3
    np.testing.assert_array_equal(draw(numbered(initializer, 0)), first)
    np.testing.assert_array_equal(draw(getattr(keras.initializers, name)(seed=3)), first)


@pytest.mark.parametrize("index", [0, 1])
def test_unseeded(index):
    initializer = keras.initializers.RandomNormal(mean=2.0, stddev=0.5)
    copy = numbered(initializer, index)
    assert copy is not initializer
    assert copy.get_config() == initializer.get_config()
    assert np.abs(draw(copy) - draw(initializer)).max() > 1e-3


def test_without_random_numbers():
    copy = numbered(keras.initializers.Constant(0.5), 3)
    np.testing.assert_array_equal(draw(copy), np.full((3, 4), 0.5))


def test_other_objects_are_returned_as_they_are():
    def initializer(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    assert numbered(initializer, 1) is initializer
    assert numbered(None, 1) is None


def test_examples():
    result = doctest.testmod(initializers)
    assert result.attempted > 0
    assert result.failed == 0
