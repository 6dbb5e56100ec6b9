"""Copies of initializers: apart for other indices, the same for the same index."""

import doctest

import keras
import numpy as np
import pytest

from kattn import layers
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


MATRICES = {
    "SelfAttention": lambda **o: layers.SelfAttention(2, use_gate=True, **o),
    "CrossAttention": lambda **o: layers.CrossAttention(2, use_gate=True, **o),
    "GatedLinearAttention": lambda **o: layers.GatedLinearAttention(2, gate_rank=8, **o),
    "FeedForward": lambda **o: layers.FeedForward(8, "swiglu", **o),
}


@pytest.mark.parametrize("name", MATRICES)
def test_no_two_matrices_of_a_layer_are_the_same(name):
    layer = MATRICES[name](kernel_initializer=keras.initializers.RandomNormal(seed=1))
    layer.build((2, 3, 8), *[(2, 3, 8)] * (name == "CrossAttention"))
    kernels = [w for w in layer.trainable_weights if w.path.endswith("/kernel")]
    blocks = [
        block.tobytes()
        for kernel in kernels
        for block in np.split(keras.ops.convert_to_numpy(kernel), kernel.shape[1] // 8, axis=1)
    ]
    assert len(blocks) >= 3
    assert len(set(blocks)) == len(blocks)
