"""Masks of query, value and key in the drop-in: implicit, explicit, numbers, objects, axes."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.layers import MultiHeadAttention
from tests.checks import shake
from tests.compute import assert_close, run
from tests.multi_head_oracle import KEEP_KEYS, KEEP_QUERIES, SeeMask, build, oracle


def test_equals_keras_on_implicit_masks(rng):
    x = rng.normal(size=(3, 4, 6)).astype("float32")
    c = rng.normal(size=(3, 5, 6)).astype("float32")
    x[~KEEP_QUERIES], c[~KEEP_KEYS] = 0.0, 0.0
    options = {"num_heads": 2, "key_dim": 3, "dropout": 0.1}
    layers = keras.layers.MultiHeadAttention(**options), MultiHeadAttention(**options)
    models = []
    for layer in layers:
        nodes = keras.Input((4, 6)), keras.Input((5, 6))
        masked = [keras.layers.Masking()(node) for node in nodes]
        models.append(keras.Model(nodes, layer(*masked)))
    shake(layers[0])
    layers[1].set_weights(layers[0].get_weights())
    expected, found = (model.predict([x, c], verbose=0) for model in models)
    assert_close(found, expected)


def test_two_axes_of_padding(rng):
    """Masks may cover the first axes of the inputs, or all but the last."""
    layer, inputs = build(rng, {"attention_axes": 2}, (3, 2, 4, 6), (3, 2, 5, 7))
    queries = np.array([[1, 0], [1, 1], [0, 1]], bool)
    keys = rng.random((3, 2, 5)) > 0.4
    keep = queries[:, :, None, None, None] & keys[:, :, None, None, :]
    expected, weights = oracle(layer, *inputs, keep=keep)
    arguments = {"query_mask": queries, "value_mask": keys}
    assert_close(run(layer, *inputs, **arguments), expected)
    assert_close(run(layer.attention_weights, *inputs, **arguments), weights)


def test_inputs_keep_their_masks(rng):
    """A1: what follows the layer still finds them; the residual sum of a block has one."""
    tokens, node = np.array([[1, 2, 0], [3, 0, 0]]), keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(4, 6, mask_zero=True)(node)
    total = keras.layers.Add()([x, MultiHeadAttention(2, 3)(x, x)])
    assert getattr(x, "_keras_mask", None) is not None
    assert getattr(total, "_keras_mask", None) is not None
    model = keras.Model(node, [total, SeeMask()(total)])
    assert (run(model, tokens)[1] == (tokens != 0)).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("flash", [None, False])
def test_a_query_without_keys_gives_the_output_bias(rng, dropout, flash):
    """A2: whatever the kernel, and whatever took the keys."""
    layer, inputs = build(rng, {"dropout": dropout, "flash_attention": flash})
    mask = np.ones((3, 4, 5), bool)
    mask[1, 2] = False
    arguments = {"query_mask": KEEP_QUERIES, "value_mask": KEEP_KEYS, "attention_mask": mask}
    output, scores = run(layer, *inputs, return_attention_scores=True, **arguments)
    bias = run(ops.convert_to_tensor, layer.output_dense.bias)
    for b, t in ((1, 0), (1, 2), (1, 3), (2, 0), (2, 3)):
        np.testing.assert_allclose(output[b, t], bias, atol=1e-6)
        assert (scores[b, :, t] == 0.0).all()
    keep = KEEP_QUERIES[:, :, None] & KEEP_KEYS[:, None] & mask
    assert_close(output, oracle(layer, *inputs, keep=keep[:, None])[0])


@pytest.mark.parametrize("which", ["query", "value", "key"])
def test_explicit_masks_join_implicit_ones(rng, which):
    """A3: eagerly and in a functional model; the output has the mask of both."""
    shapes = {"query": (3, 4, 6), "value": (3, 5, 7), "key": (3, 5, 2)}
    layer, inputs = build(rng, {}, *shapes.values())
    at = list(shapes).index(which)
    implicit = KEEP_QUERIES if which == "query" else KEEP_KEYS
    explicit = np.ones_like(implicit)
    explicit[0, 1] = explicit[1, 1] = False
    inputs[at][~implicit] = 0.0

    nodes = [keras.Input(shape[1:]) for shape in shapes.values()]
    mask_node = keras.Input(explicit.shape[1:], dtype="bool")
    tensors = list(nodes)
    tensors[at] = keras.layers.Masking()(nodes[at])
    output = layer(*tensors, **{f"{which}_mask": mask_node})
    model = keras.Model([*nodes, mask_node], [output, SeeMask()(output)])

    both = implicit & explicit
    keep = both[:, None, :, None] if which == "query" else both[:, None, None, :]
    expected, _ = oracle(layer, *inputs, keep=keep)
    found, seen = model.predict([*inputs, explicit], verbose=0)
    assert_close(found, expected)
    assert (seen == (both if which == "query" else -1)).all()

    tensors = list(inputs)
    tensors[at] = keras.layers.Masking()(inputs[at])
    assert_close(run(layer, *tensors, **{f"{which}_mask": explicit}), expected)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "bfloat16"])
def test_keeps_numbers(rng, dtype):
    """Keras takes them, and Keras code passes them: 0 = may not attend."""
    layer, inputs = build(rng, {})
    mask = rng.random((3, 4, 5)) > 0.4
    expected, _ = oracle(layer, *inputs, keep=(mask & KEEP_KEYS[:, None])[:, None])
    arguments = {"attention_mask": mask, "value_mask": KEEP_KEYS}
    arguments = {name: ops.cast(x, dtype) for name, x in arguments.items()}
    assert_close(run(layer, *inputs, **arguments), expected)


def test_keeps_two_axes_and_mask_objects(rng):
    layer, inputs = build(rng, {})
    mask = rng.random((4, 5)) > 0.4
    expected, _ = oracle(layer, *inputs, keep=mask & KEEP_KEYS[:, None, None], causal=True)
    arguments = {"value_mask": KEEP_KEYS, "use_causal_mask": True}
    assert_close(run(layer, *inputs, attention_mask=mask, **arguments), expected)
    mask = masks.Dense(mask)
    assert_close(run(layer, *inputs, attention_mask=mask, **arguments), expected)
    mask = mask & masks.Causal() & masks.Padding(KEEP_KEYS)
    assert_close(run(layer, *inputs, attention_mask=mask), expected)


def test_mask_objects_over_several_axes(rng):
    """They see the steps as one axis."""
    layer, inputs = build(rng, {}, (3, 2, 3, 6), (3, 4, 3, 7))
    expected, weights = oracle(layer, *inputs, causal=True)
    assert_close(run(layer, *inputs, attention_mask=masks.Causal()), expected)
    found = run(layer.attention_weights, *inputs, attention_mask=masks.Causal())
    assert_close(found, weights)


def test_explicit_and_implicit_keeps_different_ranks(rng):
    """Each covers the first axes of the input, whether or not the sizes happen to agree."""
    layer, inputs = build(rng, {"attention_axes": 2}, (3, 3, 3, 6), (3, 3, 5, 7))
    implicit = rng.random((3, 3, 3)) > 0.4
    explicit = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool)
    inputs[0][~implicit] = 0.0
    keep = (implicit & explicit[:, :, None])[:, :, None, :, None]
    expected, _ = oracle(layer, *inputs, keep=keep)
    masked = keras.layers.Masking()(inputs[0])
    assert_close(run(layer, masked, inputs[1], query_mask=explicit), expected)


@pytest.mark.parametrize("axes", [None, 1])
def test_what_stands_at_padding_over_axes_is_without_effect(rng, axes):
    layer, (x, c) = build(rng, {"attention_axes": axes}, (2, 3, 4, 6), (2, 3, 4, 7))
    of_query, of_value = rng.random((2, 3, 4)) > 0.3, rng.random((2, 3)) > 0.3
    found = []
    for value in (0.0, np.nan):
        x[~of_query], c[~of_value] = value, value
        given = {"query_mask": of_query, "value_mask": of_value}
        found.append(run(layer, x, c, np.copy(c), **given))
    assert_close(found[1], found[0])


def test_weights_see_implicit_masks_under_mixed_precision(rng):
    layer, (x, c) = build(rng, {"dtype": "mixed_bfloat16"})
    x[~KEEP_QUERIES], c[~KEEP_KEYS] = 0.0, 0.0
    masked = [keras.layers.Masking()(a) for a in (x, c)]
    weights = run(layer.attention_weights, *masked)
    keep = KEEP_QUERIES[:, None, :, None] & KEEP_KEYS[:, None, None, :]
    assert (weights[~np.broadcast_to(keep, weights.shape)] == 0.0).all()
    assert_close(weights, oracle(layer, x, c, keep=keep)[1], 3e-2)


BAD_MASKS = {
    "rank": ("attention_mask", np.ones((5,), bool), r"`attention_mask` must.*\(5,\)"),
    "size": ("attention_mask", np.ones((3, 4, 4), bool), r"must broadcast to.*4, 4\)"),
    "padding rank": ("value_mask", np.ones((3,), bool), r"mask.* must .*\(3,\)"),
    "padding of scores": ("key_mask", np.ones((3, 4, 5), bool), r"mask.* must .*\(3, 4, 5\)"),
    "padding size": ("query_mask", np.ones((3, 5), bool), r"mask.* must .*\(3, 5\)"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks(rng, name):
    argument, mask, message = BAD_MASKS[name]
    layer, inputs = build(rng, {})
    with pytest.raises(ValueError, match=message):
        layer(*inputs, **{argument: mask})
