"""Sizes of zero, unknown lengths and every `floatx`, for all layers that kattn exports."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.checks import shake
from tests.compute import assert_close, differentiate, quick, run
from tests.every_layer import LAYERS, arrays, exported, output_shape, symbols
from tests.traced import traced_for_any_length

# Tracing takes PyTorch and JAX a second each; these are all kinds of loops and tables.
TRACED = (
    "SelfAttention",
    "LinearAttention",
    "LinearAttention, softmax",
    "GatedLinearAttention",
    "GatedLinearAttention, fixed",
    "GatedDeltaNet",
    "GriffinRecurrence",
)
# On JAX each call is traced and compiled, so that one layer of each kind must do.
ON_JAX = ("SelfAttention", "LinearAttention", "GatedLinearAttention", "SelfAttention2D, rotary")
CHECKED = ON_JAX if keras.backend.backend() == "jax" else tuple(LAYERS)


def ready(name, **options):
    """A layer that is built, its weights off their initial values; and the shapes of its inputs."""
    make, shapes = LAYERS[name]
    layer = make(**options)
    shake(layer, arrays(shapes, batch=2, steps=5))
    return layer, shapes


def test_no_layer_is_left_out():
    assert {name.split(",")[0] for name in LAYERS} == exported()


@pytest.mark.parametrize(("batch", "steps"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("name", CHECKED)
def test_sizes_of_zero(name, batch, steps):
    """The output is as empty as the input, or 0 where it pools, and so are the gradients."""
    layer, shapes = ready(name)
    inputs = arrays(shapes, batch=batch, steps=steps)
    shape = output_shape(name, inputs[0].shape)
    output, gradients = differentiate(quick(lambda *x: layer(*x)), inputs, np.zeros(shape))
    assert output.shape == shape
    assert (output == 0).all()
    assert [x.shape for x in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("name", ["CrossAttention", "MultiHeadAttention"])
def test_an_empty_context(name):
    """What sees nothing gets the output bias."""
    layer, shapes = ready(name)
    x, context = arrays(shapes, batch=2, steps=5)
    output = run(layer, x, context[:, :0])
    assert_close(output, np.broadcast_to(output[:1, :1], output.shape))
    assert_close(output[0, 0], run(ops.convert_to_tensor, layer.weights[-1]), 1e-4)


def test_an_empty_context_is_decoded():
    layer, shapes = ready("CrossAttention")
    x, context = arrays(shapes, batch=2, steps=5)
    cache = layer.init_cache(2, 5, context[:, :0])
    assert_close(run(layer.decode, x, cache)[0], run(layer, x, context[:, :0]))


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """What a user writes around a layer; Keras infers its output by tracing its call."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x, other=None):
        return self.layer(x) if other is None else self.layer(x, other)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow infers shapes as it traces: test_traced_once_for_any_length",
)
@pytest.mark.parametrize("name", LAYERS)
def test_unknown_lengths_inside_of_a_block(name):
    make, shapes = LAYERS[name]
    block = Block(make())
    nodes = [keras.Input(shape[1:]) for shape in symbols(shapes, None)]
    model = keras.Model(nodes, block(*nodes))
    assert model.output.shape[1:] == output_shape(name, symbols(shapes, None)[0])[1:]
    inputs = arrays(shapes, batch=2, steps=3)
    assert_close(run(model, inputs), run(block.layer, *inputs))


@pytest.mark.parametrize("name", TRACED if keras.backend.backend() != "tensorflow" else LAYERS)
def test_traced_once_for_any_length(name):
    layer, shapes = ready(name)
    function = traced_for_any_length(layer, arrays(shapes, batch=2, steps=5), symbols(shapes, "T"))
    # TensorFlow alone traces for no steps, too.
    for steps in (7, 0) if keras.backend.backend() == "tensorflow" else (7,):
        inputs = arrays(shapes, batch=2, steps=steps)
        assert_close(run(function, *inputs), run(layer, *inputs))


def test_lengths_are_still_checked():
    layer, shapes = ready("LearnedPositions")
    with pytest.raises(ValueError, match="must not be longer than `length`"):
        layer(*arrays(shapes, batch=2, steps=65))


@pytest.fixture
def floatx(request):
    """Sets `keras.config.floatx` for a test, and the dtype policy that follows from it."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("floatx", ["float16"], indirect=True)
def test_floatx_does_not_change_a_layer_of_float32(name, floatx):
    layer, shapes = ready(name, dtype="float32")
    inputs = arrays(shapes, batch=2, steps=5)
    output, gradients = differentiate(quick(lambda *x: layer(*x)), inputs, inputs[0])
    assert output.dtype == "float32"
    keras.config.set_floatx("float32")
    expected, wanted = differentiate(quick(lambda *x: layer(*x)), inputs, inputs[0])
    for pair in zip((output, *gradients), (expected, *wanted), strict=True):
        assert_close(*pair)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("floatx", ["bfloat16"], indirect=True)
def test_layers_compute_in_floatx(name, floatx):
    layer, shapes = ready(name)
    inputs = arrays(shapes, batch=2, steps=5)
    output = layer(*inputs)
    assert keras.backend.standardize_dtype(output.dtype) == floatx
    found = run(ops.cast, output, "float32")
    again, _ = ready(name, dtype="float32")
    again.set_weights([run(ops.cast, weight, "float32") for weight in layer.weights])
    assert_close(found, run(again, *inputs), 6e-2)
