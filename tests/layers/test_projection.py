"""The dense layer that projections are."""

import keras
import numpy as np
import pytest

from kattn.layers.projection import Projection
from tests.compute import assert_close, run


def made(width=3, units=4):
    layer = Projection(units)
    layer.build((None, width))
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(width, units)), rng.normal(size=units)]
    layer.set_weights([x.astype("float32") for x in weights])
    return layer, weights


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (2, 4, 5, 3), (2, 0, 3), (0, 5, 3)])
def test_matches_a_matrix_product(rng, shape):
    layer, (kernel, bias) = made()
    x = rng.normal(size=shape).astype("float32")
    assert_close(run(layer, x), x @ kernel + bias)


def test_lora_and_quantization(rng):
    # XLA's products of int8 on GPUs are wrong where a width is no multiple of 8 (JAX 0.11.2).
    layer, (kernel, bias) = made(8, 16)
    x = rng.normal(size=(2, 5, 8)).astype("float32")
    layer.enable_lora(2)
    change = rng.normal(size=(2, 16)).astype("float32")
    layer.lora_kernel_b.assign(change)
    kernel = kernel + keras.ops.convert_to_numpy(layer.lora_kernel_a) @ change
    assert_close(run(layer, x), x @ kernel + bias)
    layer.quantize("int8")
    assert layer.quantization_mode == "int8"
    assert np.abs(run(layer, x) - (x @ kernel + bias)).max() < 0.1


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="others have no need of it")
def test_all_products_are_of_matrices():
    """Those of the gradients, too: XLA takes longer over more axes of rows."""
    import jax

    layer, _ = made()

    def loss(kernel, x):
        mapping = [(layer.kernel, kernel)]
        with keras.StatelessScope(state_mapping=mapping):
            return keras.ops.sum(layer(x) ** 2)

    gradients = jax.grad(loss, argnums=(0, 1))
    jaxpr = jax.make_jaxpr(gradients)(layer.kernel.value, np.ones((2, 5, 3), "float32"))
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert {len(x.aval.shape) for e in products for x in e.invars} == {2}
