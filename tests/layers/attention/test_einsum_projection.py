"""The projections of the drop-in: their first values, losses, policies and adapters."""

import keras
import numpy as np
from keras import ops

from kattn.layers import MultiHeadAttention
from tests.checks import shake
from tests.compute import assert_close, run
from tests.multi_head_oracle import FULL, build


def test_losses_are_those_of_keras(rng):
    """Activity is that of the projections: the layer's own output does not count again."""
    inputs = [rng.normal(size=shape).astype("float32") for shape in ((3, 5, 6), (3, 5, 7))]
    options = {**FULL, "flash_attention": None, "value_dim": 3}
    theirs, ours = keras.layers.MultiHeadAttention(**options), MultiHeadAttention(**options)
    for layer in (theirs, ours):
        layer.build(*(x.shape for x in inputs))
    shake(theirs)
    ours.set_weights(theirs.get_weights())
    totals = []
    for layer in (theirs, ours):
        layer(*inputs)
        totals.append(run(sum, layer.losses))
    assert_close(totals[1], totals[0])


def test_lora_and_quantisation_of_the_projections(rng, device):
    layer, inputs = build(rng, {"use_bias": False})
    calm = run(layer, *inputs)
    layer._query_dense.enable_lora(1)
    assert_close(run(layer, *inputs), calm)
    raised = layer._query_dense.lora_kernel_b
    raised.assign(np.ones(raised.shape))
    assert np.abs(run(layer, *inputs) - calm).max() > 1e-3
    calm = run(layer, *inputs)
    for part in (layer._key_dense, layer._value_dense, layer._output_dense):
        part.quantize("int8")
        assert keras.backend.standardize_dtype(part._kernel.dtype) == "int8"
    if device == "gpu:0" and keras.backend.backend() == "jax":
        return  # whose products of int8 are wrong where a width is no multiple of 8 (0.11.2)
    assert_close(run(layer, *inputs), calm, 5e-2)


def test_dtype_policies_by_path():
    policies = keras.dtype_policies.DTypePolicyMap()
    policies["attention/query"] = keras.dtype_policies.QuantizedDTypePolicy("int8", "float32")
    layer = MultiHeadAttention(2, 3, use_bias=False, dtype=policies, name="attention")
    layer.build((3, 4, 6), (3, 5, 7))
    dtypes = [part._kernel.dtype for part in (layer._query_dense, layer._key_dense)]
    assert list(map(keras.backend.standardize_dtype, dtypes)) == ["int8", "float32"]


def test_initial_values():
    """Without a seed, each projection draws its own."""
    layer = MultiHeadAttention(4, 16)
    layer.build((None, None, 64), (None, None, 64))
    kernels = [run(ops.convert_to_tensor, w) for w in layer.weights if w.name == "kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
