import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import AxialAttention2D, LinearAttention, SelfAttention
from kattn.visualize import AttentionCall, attention_layers, capture_attention

X = np.random.default_rng(3).normal(size=(3, 5, 8)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0] * 5], bool)


def model_of(*names):
    """A model of the named layers, one after the other. One that is named twice is shared."""
    inputs, mask = keras.Input((5, 8)), keras.Input((5,), dtype="bool")
    layers = {
        "first": SelfAttention(2, causal=True, name="first"),
        "second": SelfAttention(4, name="second"),
        "linear": LinearAttention(2, name="linear"),
    }
    y = inputs
    for name in names:
        y = layers[name](y, mask=mask)
    return keras.Model([inputs, mask], y), layers


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def oracle(layer, x, keep, causal):
    """Weights and largest logit of a `SelfAttention`, from its own kernels, in float64."""
    heads = layer.num_heads
    kernel, bias = (
        np.array(next(w for w in layer.weights if w.path.endswith(f"qkv/{end}")), float)
        for end in ("kernel", "bias")
    )
    flat = x.astype(float) @ kernel + bias
    q, k = (flat[..., i : i + 8].reshape(*x.shape[:2], heads, -1) for i in (0, 8))
    scores = np.einsum("btnd,bsnd->bnts", q, k) / np.sqrt(q.shape[-1])
    seen = np.broadcast_to(keep[:, None, None, :], scores.shape)
    if causal:
        seen = seen & np.tri(x.shape[1], dtype=bool)
    weights = softmax(np.where(seen, scores, -1e9)) * seen
    return weights * keep[:, None, :, None], scores[seen].max()


def test_weights_and_logits_are_those_of_each_layer():
    model, layers = model_of("first", "second")
    calls = capture_attention(model, [X, MASK])
    assert list(calls) == ["first", "second"]
    middle = ops.convert_to_numpy(layers["first"](X, mask=MASK))
    for name, x in (("first", X), ("second", middle)):
        (call,) = calls[name]
        weights, logit = oracle(layers[name], x, MASK, causal=name == "first")
        assert isinstance(call, AttentionCall)
        np.testing.assert_allclose(call.weights, weights, atol=1e-5)
        np.testing.assert_allclose(call.largest_logit, logit, rtol=1e-5)


def test_a_layer_that_is_called_twice_has_two_calls():
    model, layers = model_of("first", "first")
    calls = capture_attention(model, [X, MASK])["first"]
    middle = ops.convert_to_numpy(layers["first"](X, mask=MASK))
    for call, x in zip(calls, (X, middle), strict=True):
        weights, logit = oracle(layers["first"], x, MASK, causal=True)
        np.testing.assert_allclose(call.weights, weights, atol=1e-5)
        np.testing.assert_allclose(call.largest_logit, logit, rtol=1e-5)


def test_a_layer_that_attends_along_several_sides_has_several_calls():
    inputs = keras.Input((5, 4, 6))
    layer = AxialAttention2D(2, name="axial")
    x = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype("float32")
    calls = capture_attention(keras.Model(inputs, layer(inputs)), x)["axial"]
    for call, weights in zip(calls, layer.attention_weights(x), strict=True):
        np.testing.assert_allclose(call.weights, ops.convert_to_numpy(weights), atol=1e-6)


def test_reduce_takes_the_place_of_weights():
    model, _ = model_of("first", "second")
    calls = capture_attention(model, [X, MASK], reduce=np.shape)
    assert [call.weights for (call,) in calls.values()] == [(3, 2, 5, 5), (3, 4, 5, 5)]


def test_linear_attention_has_no_logits():
    model, _ = model_of("linear")
    ((call,),) = capture_attention(model, [X, MASK]).values()
    assert call.largest_logit is None
    assert call.weights.shape == (3, 2, 5, 5)


def test_the_model_is_as_before_even_after_an_error():
    model, layers = model_of("first", "second")
    before = ops.convert_to_numpy(model([X, MASK]))

    def fail(weights):
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        capture_attention(model, [X, MASK], reduce=fail)
    assert all("call" not in vars(layer) for layer in layers.values())
    capture_attention(model, [X, MASK])
    np.testing.assert_array_equal(ops.convert_to_numpy(model([X, MASK])), before)


def test_layers_inside_of_models_are_known():
    inner, layers = model_of("first", "second")
    inputs = [keras.Input((5, 8)), keras.Input((5,), dtype="bool")]
    outer = keras.Model(inputs, inner(inputs))
    assert {id(layer) for layer in attention_layers(outer)} == {
        id(layers["first"]),
        id(layers["second"]),
    }
    assert len(capture_attention(outer, [X, MASK])) == 2


def test_models_without_attention():
    model = keras.Sequential([keras.Input((5, 8)), keras.layers.Dense(2)], name="plain")
    assert attention_layers(model) == []
    with pytest.raises(ValueError, match=r"must have attention layers .*; received: model='plain'"):
        capture_attention(model, X)


class Around(keras.layers.Layer):
    """Adds a `SelfAttention` to something that it says to attend to itself."""

    def __init__(self):
        super().__init__(name="around")
        self.inner = SelfAttention(2, name="inner")

    def call(self, x):
        return x + self.inner(x)

    def attention_weights(self, x):
        return ops.ones((1, 1, 1, 1))


def test_a_layer_inside_another_has_its_own_logit():
    inputs = keras.Input((5, 8))
    calls = capture_attention(keras.Model(inputs, Around()(inputs)), X)
    logits = {path: [call.largest_logit is None for call in each] for path, each in calls.items()}
    assert logits == {"around/inner": [False], "around": [True]}
