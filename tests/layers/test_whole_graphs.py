"""What PyTorch compiles as one graph, and per-example gradients of layers that drop."""

import keras
import numpy as np
import pytest

from kattn import biases, layers, masks
from kattn.ops import attention
from kattn.ops.kernels import frames
from tests.checks import shake
from tests.compute import assert_close

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("for PyTorch alone", allow_module_level=True)

X = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
REAL = torch.tensor([[True, True, True, False], [True] * 4])
DROPS = {"dropout": 0.5, "seed": 1}


def whole(function):
    """The function as one graph, or an error that says where the compiler stops."""
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def with_gradients(function, seed, *arrays):
    """The output, and a gradient for each array."""
    tensors = [keras.ops.convert_to_tensor(x).requires_grad_() for x in arrays]
    output = function(*tensors, *([] if seed is None else [seed]))
    return [output.detach(), *torch.autograd.grad((output**3).sum(), tensors)]


def assert_all_close(found, expected):
    for pair in zip(found, expected, strict=True):
        assert_close(*map(keras.ops.convert_to_numpy, pair))


def test_chunked_with_dropout_is_one_graph():
    def call(q, seed):
        options = {"mask": masks.Causal() & masks.Padding(REAL), "dropout_rate": 0.5}
        return attention(q, q, q, seed=seed, implementation="chunked", **options)

    seeds = [keras.random.SeedGenerator(1) for _ in range(2)]
    results = [
        with_gradients(function, seed, X.reshape(2, 4, 2, 4))
        for function, seed in zip((whole(call), call), seeds, strict=True)
    ]
    assert_all_close(*results)


def test_banded_with_a_bias_is_one_graph(monkeypatch):
    monkeypatch.setattr(frames, "NARROWEST", 2)

    def call(q, table):
        options = {"mask": masks.Window(2), "bias": biases.Clipped(table)}
        return attention(q, q, q, implementation="banded", **options)

    arrays = X.reshape(2, 4, 2, 4), X[0, :2, :3]
    assert_all_close(*(with_gradients(function, None, *arrays) for function in (whole(call), call)))


def test_a_step_of_decoding_is_one_graph():
    layer = layers.LinearAttention(2, causal=True, feature_map="softmax")
    layer.build(X.shape)
    shake(layer)
    x, cache = keras.ops.convert_to_tensor(X[:, :1]), layer.init_cache(2, 8)
    with torch.no_grad():
        found, expected = whole(layer.decode)(x, cache), layer.decode(x, cache)
    assert_all_close(keras.tree.flatten(found), keras.tree.flatten(expected))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("implementation", ["chunked", "dense"])
def test_gradients_of_each_example_under_dropout(implementation):
    """By `stateless_call`, as for Keras's Dropout; and each example may draw by its own state."""
    layer = layers.SelfAttention(2, implementation=implementation, **DROPS)
    layer.build(X.shape)
    weights = [weight.value.detach() for weight in layer.trainable_variables]
    (seed,) = layer.non_trainable_variables
    states = torch.stack([seed.value, seed.value + 1])

    def loss(x, state):
        output, _ = layer.stateless_call(weights, [state], x[None], training=True)
        return (output**3).sum()

    gradient, x = torch.func.grad(loss), torch.tensor(X)
    found = torch.func.vmap(gradient)(x, states)
    for i in range(2):
        assert_close(found[i], gradient(x[i], states[i]))
    one_state = torch.func.vmap(gradient, in_dims=(0, None))(x, states[1])
    assert_close(one_state[1], found[1])
    assert (one_state[0] - found[0]).abs().max() > 1e-3
