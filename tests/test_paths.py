import keras
import pytest

from kattn.layers import SelfAttention
from kattn.paths import layer_paths, weight_paths


def block(name, *layers):
    """A model of its own, built before it is put in another."""
    inputs = outputs = keras.Input((4,))
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name=name)


def dense():
    return keras.layers.Dense(4, name="fc")


def outer(*layers):
    return keras.Sequential([keras.Input((4,)), *layers], name="outer")


def test_models_in_a_model():
    a, b = dense(), dense()
    model = outer(block("a", a), block("b", b))
    assert a.kernel.path == b.kernel.path == "fc/kernel"
    paths = weight_paths(model)
    assert [paths[id(w)] for w in model.weights] == [
        "a/fc/kernel",
        "a/fc/bias",
        "b/fc/kernel",
        "b/fc/bias",
    ]
    assert [layer_paths(model)[id(layer)] for layer in (a, b)] == ["a/fc", "b/fc"]


def test_models_in_models_of_a_model():
    inner = dense()
    model = outer(block("fc", block("deep", inner)))
    assert weight_paths(model)[id(inner.kernel)] == "fc/deep/fc/kernel"


def test_what_keras_already_says_is_not_said_twice():
    attention = SelfAttention(2, name="attention")
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, attention(inputs))
    paths = weight_paths(model)
    assert [paths[id(w)] for w in model.weights] == [w.path for w in model.weights]
    assert layer_paths(model)[id(attention)] == attention.path


class Written(keras.Model):
    """A model whose own name Keras puts into the paths of what it builds itself."""

    def __init__(self):
        super().__init__(name="written")
        self.first, self.second = block("a", dense()), dense()

    def call(self, x):
        return self.second(self.first(x))


def test_a_model_of_a_class():
    model = Written()
    model(keras.ops.ones((1, 4)))
    paths = weight_paths(model)
    assert paths[id(model.second.kernel)] == model.second.kernel.path == "written/fc/kernel"
    assert paths[id(model.first.layers[1].kernel)] == "a/fc/kernel"


@pytest.mark.parametrize("kind", [keras.layers.LSTM, keras.layers.GRU])
def test_cells_of_a_wrapped_recurrent_layer(kind):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, keras.layers.Bidirectional(kind(3), name="both")(inputs))
    paths = [weight_paths(model)[id(w)] for w in model.trainable_weights]
    assert paths == [w.path for w in model.trainable_weights]
    assert len(set(paths)) == len(paths) == 6


def test_a_layer_in_two_places_has_one_path():
    shared = dense()
    model = outer(block("a", shared), block("b", shared))
    assert weight_paths(model)[id(shared.kernel)] == "a/fc/kernel"
