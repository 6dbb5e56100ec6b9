"""Dense layers made with the options of a layer's projections."""

import keras
import numpy as np

from kattn.layers.attention.projection_options import ProjectionOptions
from tests.compute import run


def weights(layer):
    return [run(keras.ops.convert_to_tensor, w) for w in layer.weights]


def test_each_part_is_a_matrix_of_its_own():
    options = ProjectionOptions(kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    kernel, bias = weights(options.dense("qkv", 64, 64, 8, 8, dtype="float32"))
    assert kernel.shape == (64, 80)
    np.testing.assert_array_equal(bias, 0.0)
    for part, width in zip(np.split(kernel, [64, 72], axis=-1), (64, 8, 8), strict=True):
        limit = np.sqrt(6 / (64 + width))
        assert 0.9 * limit < np.abs(part).max() <= limit
    assert np.abs(kernel[:, 64:72] - kernel[:, 72:]).max() > 0.1


def test_what_is_asked_for_reaches_the_layer():
    options = ProjectionOptions(True, "he_normal", "ones", "l2", keras.regularizers.L1(0.5))
    layer = options.dense("out", 3, 4, dtype="mixed_bfloat16")
    assert layer.name == "out"
    assert layer.dtype_policy.name == "mixed_bfloat16"
    assert isinstance(layer.kernel_regularizer, keras.regularizers.L2)
    assert layer.bias_regularizer.l1 == 0.5
    np.testing.assert_array_equal(weights(layer)[1], 1.0)
    assert len(options.dense("down", 3, 4, dtype="float32", use_bias=False).weights) == 1
    assert len(ProjectionOptions(False).dense("down", 3, 4, dtype="float32").weights) == 1


def test_two_projections_of_one_unseeded_initializer_differ():
    options = ProjectionOptions()
    first, second = (options.dense(name, 8, 8, dtype="float32") for name in "ab")
    assert np.abs(weights(first)[0] - weights(second)[0]).max() > 0.1


def test_the_config_makes_equal_options():
    options = ProjectionOptions(False, "he_normal", "ones", "l2", None)
    config = options.get_config()
    assert set(config) == set(ProjectionOptions.__dataclass_fields__)
    again = ProjectionOptions(**config)
    assert again.get_config() == config
    assert isinstance(again.kernel_initializer, keras.initializers.HeNormal)
