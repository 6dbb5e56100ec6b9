"""`keras.RematScope` around layers of kattn: the same training, run again for the gradient."""

import keras
import numpy as np
import pytest

from kattn import layers
from kattn.layers.rematerialized_layer import RematerializedLayer
from kattn.ops import recomputation

SEQUENCE, MAP = (6, 8), (4, 4, 8)
MAKERS = {
    "chunked": (lambda: layers.SelfAttention(2, dropout=0.3, implementation="chunked"), SEQUENCE),
    "drop-in": (lambda: layers.MultiHeadAttention(2, 4, dropout=0.3, seed=1), SEQUENCE),
    "gated": (lambda: layers.GatedLinearAttention(2), SEQUENCE),
    "recurrent": (
        lambda: layers.AttentionRNN(
            keras.layers.GRUCell(8, dropout=0.3, seed=1), "general", causal=True, window=3
        ),
        SEQUENCE,
    ),
    "map": (lambda: layers.SelfAttention2D(2, dropout=0.3, seed=1), MAP),
}


def train(make, shape, mode):
    """The losses of three batches and the weights after them; the layer sees padding."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")
    x[1, 4:] = 0.0
    with keras.RematScope(mode=mode):
        inputs = keras.Input(shape)
        hidden = keras.layers.Masking()(inputs) if shape == SEQUENCE else inputs
        layer = make()
        outputs = layer(hidden, hidden) if "Head" in type(layer).__name__ else layer(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(x, x, batch_size=2, shuffle=False, verbose=0)
    return history.history["loss"], model.get_weights()


@pytest.mark.parametrize("name", MAKERS)
def test_trains_as_without(name, monkeypatch):
    calls = []
    recomputed = recomputation.recomputed
    monkeypatch.setattr(recomputation, "recomputed", lambda f: calls.append(f) or recomputed(f))
    expected, expected_weights = train(*MAKERS[name], mode=None)
    assert not calls
    found, found_weights = train(*MAKERS[name], mode="full")
    assert calls
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for x, y in zip(found_weights, expected_weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_every_layer_that_attends():
    exported = [x for x in vars(layers).values() if isinstance(x, type)]
    others = [layer for layer in exported if not issubclass(layer, RematerializedLayer)]
    assert all(issubclass(layer, layers.Position) for layer in others)


def test_the_implicit_mask_of_one_of_several_inputs():
    """Keras does not hand it on as an argument then; the layer finds it at its input."""
    x = np.random.default_rng(0).normal(size=(2, *SEQUENCE)).astype("float32")
    x[1, 4:] = 0.0
    made = []
    for mode in (None, "full"):
        with keras.RematScope(mode=mode):
            made.append(layers.SelfAttention(2, position=layers.LearnedPositions(9)))
        made[-1].build(x.shape)
    made[1].set_weights(made[0].get_weights())
    positions = np.arange(3, 9, dtype="int32")
    wanted, found = (layer(keras.layers.Masking()(x), positions=positions) for layer in made)
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, wanted)), rtol=1e-5)
    free = keras.ops.convert_to_numpy(made[0](x, positions=positions))
    assert np.abs(free - keras.ops.convert_to_numpy(wanted)).max() > 1e-3


class Around(RematerializedLayer):
    """A layer that is made of another."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def build(self, shape):
        self.part.build(shape)

    def call(self, x):
        return self.part(x)


def test_what_is_inside_runs_again_once(monkeypatch):
    """With the layer around it, also if it was made in the scope on its own."""
    calls, recomputed = [], recomputation.recomputed
    monkeypatch.setattr(recomputation, "recomputed", lambda f: calls.append(f) or recomputed(f))
    with keras.RematScope(mode="full"):
        layer = Around(Around(layers.FeedForward(4)))
    layer(np.ones((2, *SEQUENCE), "float32"))
    assert len(calls) == 1


def test_scope_that_names_other_layers():
    layer = layers.SelfAttention(2)
    with keras.RematScope(mode="list_of_layers", layer_names=["another"]):
        layer = layers.SelfAttention(2, name="attention")
    assert layer.rematerialized_call(layer.call) == layer.call


def test_more_than_one_output():
    """The drop-in returns its weights as well, if it is asked for them."""
    x = np.random.default_rng(0).normal(size=(2, *SEQUENCE)).astype("float32")
    with keras.RematScope(mode="full"):
        layer = layers.MultiHeadAttention(2, 4)
        output, weights = layer(x, x, return_attention_scores=True)
    assert tuple(output.shape) == (2, *SEQUENCE)
    assert tuple(weights.shape) == (2, 2, 6, 6)
