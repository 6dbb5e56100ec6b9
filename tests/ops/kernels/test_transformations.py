"""Transformations of functions, of `torch.func` and of JAX, through kernels with own gradients."""

import functools

import keras
import numpy as np
import pytest

from kattn import masks
from kattn.ops import attention, explain
from kattn.ops.kernels import frames, tiles
from tests.compute import assert_close

BACKEND = keras.backend.backend()
MASKS = {
    "chunked": masks.Causal(),
    "banded": masks.Causal() & masks.Window(2),
    "fused": None,
}
if BACKEND == "jax":
    import jax as transforms
elif BACKEND == "torch":
    import torch.func as transforms
else:
    pytest.skip("TensorFlow has no such transformations", allow_module_level=True)


# PyTorch's own: of its forward mode, and of its fused kernel, which vmap runs in a loop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 3)
    monkeypatch.setattr(frames, "NARROWEST", 2)


def examples():
    """Queries, keys and values of three examples, `(3, T, N, D)`."""
    rng = np.random.default_rng(0)
    return [keras.ops.convert_to_tensor(rng.normal(size=(3, 5, 2, 2)), "float32") for _ in "qkv"]


def loss(kernel, implementation):
    """A function of the queries, keys and values of one example."""

    def function(q, k, v):
        options = {"mask": MASKS[kernel], "implementation": implementation}
        y = attention(q[None], k[None], v[None], **options)
        return keras.ops.sum(y * y * y)

    return function


def assert_same(transform, kernel, implementation):
    """The transformed function is that of `dense`, which is made of plain operations."""
    found, expected = (transform(loss(kernel, name)) for name in (implementation, "dense"))
    if BACKEND == "jax":
        found, expected = (transforms.jit(f) for f in (found, expected))
    tensors = examples()
    to_numpy = keras.ops.convert_to_numpy
    assert_close(to_numpy(found(*tensors)), to_numpy(expected(*tensors)), 1e-4)


@pytest.mark.parametrize("kernel", ["chunked", "banded"])
class TestReverse:
    def test_examples_at_once(self, kernel):
        assert_same(transforms.vmap, kernel, kernel)

    def test_gradient_of_each_example(self, kernel):
        assert_same(lambda f: transforms.vmap(transforms.grad(f)), kernel, kernel)

    def test_jacobian(self, kernel):
        def jacobian(f):
            return lambda q, k, v: transforms.jacrev(f)(q[0], k[0], v[0])

        assert_same(jacobian, kernel, kernel)


@pytest.mark.parametrize("kernel", MASKS)
class TestForward:
    """`dense` steps in: no other kernel has tangents."""

    def test_tangent(self, kernel):
        def tangent(f):
            return lambda q, k, v: transforms.jvp(
                functools.partial(f, k=k[0], v=v[0]), (q[0],), (q[1],)
            )[1]

        assert_same(tangent, kernel, "auto")
        assert_same(tangent, kernel, (kernel, "dense"))

    def test_hessian(self, kernel):
        def hessian(f):
            return lambda q, k, v: transforms.hessian(f)(q[0], k[0], v[0])

        assert_same(hessian, kernel, (kernel, "dense"))

    def test_alone_it_is_refused(self, kernel):
        q, k, v = examples()

        def refused(q):
            passed_over = explain(q, k, v, mask=MASKS[kernel], implementation="auto").passed_over
            assert "forward-mode" in passed_over[kernel]
            return attention(q, k, v, mask=MASKS[kernel], implementation=kernel)

        with pytest.raises(ValueError, match="goes through dense alone"):
            transforms.jvp(refused, (q,), (q,))
