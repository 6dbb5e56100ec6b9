"""Models of Keras before and after: the same outputs, and a word about each attention layer."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kattn
from kattn.models import replace_attention
from tests.checks import shake
from tests.compute import assert_close


def replaced(model, inputs, expected):
    """The new model, which computes the same; `expected` are the lines that are printed."""
    shake(model)
    wanted, lines = model.predict(inputs, verbose=0), []
    new = replace_attention(model, print_fn=lines.append)
    keras.tree.map_structure(assert_close, new.predict(inputs, verbose=0), wanted)
    assert lines == expected
    assert all(a is not b for a in new.weights for b in model.weights)
    return new


def now(name):
    return f"{name}: is a kattn.layers.MultiHeadAttention now"


def attention(name, **options):
    return layers.MultiHeadAttention(2, 3, name=name, **options)


def test_a_model_of_all_kinds(rng):
    """Named inputs, masks, scores, a shared layer, a nested model, and other layers."""
    nodes = {"x": keras.Input((5, 6), name="x"), "c": keras.Input((4, 6), name="c")}
    mask = keras.Input((5, 4), dtype="bool", name="mask")
    shared, scale = attention("shared", use_gate=True), layers.Normalization(name="n")
    scale.adapt(rng.normal(size=(8, 5, 6)).astype("float32") * 3 + 1)
    x = shared(scale(nodes["x"]), nodes["x"], use_causal_mask=True)
    x = layers.BatchNormalization()(shared(x, x))
    inner = keras.Input((5, 6))
    grouped = layers.GroupQueryAttention(3, 4, 2, sliding_window=3, name="grouped")
    nested = keras.Model(inner, grouped(inner, inner, use_causal_mask=True), name="nested")
    x = keras.Sequential([keras.Input((5, 6)), layers.Dense(6), nested], name="line")(x)
    y, scores = attention("cross", output_shape=(2, 2))(
        x, nodes["c"], attention_mask=mask, return_attention_scores=True
    )
    model = keras.Model({**nodes, "mask": mask}, {"y": y, "scores": scores}, name="whole")
    inputs = {
        name: rng.normal(size=(3, t, 6)).astype("float32") for name, t in (("x", 5), ("c", 4))
    }
    inputs["mask"] = rng.random((3, 5, 4)) > 0.4
    inputs["mask"][..., 0] = True
    model.get_layer("shared").trainable = False
    lines = [now("shared"), now("grouped"), now("cross")]
    new = replaced(model, inputs, lines)
    assert new.name == "whole"
    assert isinstance(new.get_layer("shared"), kattn.layers.MultiHeadAttention)
    assert not new.get_layer("shared").trainable
    nested = new.get_layer("line").get_layer("nested")
    assert nested.get_layer("grouped").num_key_value_heads == 2
    assert isinstance(model.get_layer("shared"), layers.MultiHeadAttention)


def test_real_steps_of_a_padded_batch(rng):
    node = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True)(node)
    model = keras.Model(node, attention("attention")(x, x, use_causal_mask=True))
    tokens = np.array([[3, 1, 4, 1, 5], [2, 6, 0, 0, 0]])
    shake(model)
    new = replace_attention(model, print_fn=None)
    wanted, found = (m.predict(tokens, verbose=0) for m in (model, new))
    assert_close(found[tokens != 0], wanted[tokens != 0])


def test_it_prints(capsys):
    x = keras.Input((5, 6))
    model = keras.Model(x, attention("attention")(x, x))
    replace_attention(model)
    assert capsys.readouterr().out == now("attention") + "\n"
    replace_attention(model, print_fn=None)
    assert capsys.readouterr().out == ""


def test_a_compiled_model_trains_on(rng):
    x = keras.Input((5, 6))
    model = keras.Model(x, attention("attention", dropout=0.2)(x, x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    new = replace_attention(model, print_fn=None)
    inputs = rng.normal(size=(3, 5, 6)).astype("float32")
    before = model.get_weights()
    new.fit(inputs, inputs, verbose=0)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(new.get_weights(), before, strict=True))
    for old, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(old, kept)


@keras.saving.register_keras_serializable("tests")
class Turned(layers.MultiHeadAttention):
    """Of a user."""

    def _compute_attention(self, query, key, value, *args, **kwargs):
        return super()._compute_attention(ops.flip(query, -1), key, value, *args, **kwargs)


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Of a user."""

    def build(self, shape):
        self.attention = layers.MultiHeadAttention(2, 3, name="attention")
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.attention(x, x)


def test_what_stays(rng):
    node, other = keras.Input((5, 6)), keras.Input((4, 6))
    x = Turned(2, 3, name="turned")(node, node)
    x = Block(name="block")(x)
    x = attention("across")(x, other, use_causal_mask=True)
    x = attention("near", sliding_window=2)(x, other)
    x = attention("all")(x, other)
    model = keras.Model([node, other], x)
    inputs = [rng.normal(size=(3, t, 6)).astype("float32") for t in (5, 4)]
    aligned = "Keras aligns its causal mask or window at the first steps of query and value"
    replaced(
        model,
        inputs,
        [
            "turned: stays, as Turned is a subclass with code of its own",
            "block/attention: stays, as it is part of a Block",
            f"across: stays, as {aligned}",
            f"near: stays, as {aligned}",
            now("all"),
        ],
    )


def test_unknown_lengths(rng):
    """A sequence is as long as itself, and perhaps not as another."""
    node, other = keras.Input((None, 6)), keras.Input((None, 6))
    x = attention("itself")(node, node, use_causal_mask=True)
    x = attention("other", sliding_window=9)(x, other)
    inputs = [rng.normal(size=(3, t, 6)).astype("float32") for t in (5, 4)]
    aligned = "Keras aligns its causal mask or window at the first steps of query and value"
    lines = [now("itself"), f"other: stays, as {aligned}"]
    replaced(keras.Model([node, other], x), inputs, lines)


def test_weights_that_a_config_does_not_make():
    x = keras.Input((5, 6))
    layer = attention("attention")
    model = keras.Model(x, layer(x, x))
    layer.query_dense.enable_lora(2)
    with pytest.raises(ValueError, match=r"those of LoRA and .* cannot be copied.*'attention'"):
        replace_attention(model, print_fn=None)


def test_models_that_cannot_be_copied():
    class Own(keras.Model):
        def call(self, x):
            return x

    for model in (Own(), keras.Sequential([layers.Dense(2)])):
        with pytest.raises(ValueError, match="`model` must be a functional or sequential model"):
            replace_attention(model)
