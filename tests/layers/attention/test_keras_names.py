"""Code that is written for Keras's layer: private names, subclasses and KerasHub's blocks."""

import importlib

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import MultiHeadAttention
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from tests.checks import shake
from tests.compute import assert_close, quick, run
from tests.multi_head_oracle import KEEP_KEYS, build


def test_private_names_of_keras(rng):
    layer, _ = build(rng, {"sliding_window": 5, "flash_attention": False, "value_dim": 2})
    names = ("num_heads", "key_dim", "value_dim", "dropout", "use_bias", "use_gate")
    for name in (*names, "attention_axes", "sliding_window", "flash_attention"):
        assert getattr(layer, f"_{name}") == getattr(layer, name)
    for part, name in (("query", "query"), ("output", "attention_output")):
        assert getattr(layer, f"_{part}_dense") is getattr(layer, f"{part}_dense")
        assert getattr(layer, f"_{part}_dense").name == name
    layer._sliding_window = 1
    assert layer.sliding_window == 1


class Adapter(keras.layers.Layer):
    """A projection and an addition of low rank, as guides to LoRA write it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.down, self.up = keras.layers.Dense(1), keras.layers.Dense(3)

    def call(self, x):
        return self.inner(x) + self.up(self.down(x))[:, :, None]


def test_an_adapter_in_the_place_of_a_projection(rng):
    layer, inputs = build(rng, {})
    calm = run(layer, *inputs)
    layer._tracker.locked = False
    layer._query_dense = Adapter(layer._query_dense)
    layer._query_dense(inputs[0])
    changed = run(layer, *inputs)
    assert np.abs(changed - calm).max() > 1e-3
    assert len(layer.trainable_weights) == 12
    layer._query_dense.up.set_weights([np.zeros((1, 3)), np.zeros(3)])
    assert_close(run(layer, *inputs), calm)
    layer, (x, _) = build(rng, {}, (3, 4, 6), (3, 4, 6))
    layer._tracker.locked = False
    layer._query_dense = Adapter(layer._query_dense)
    full = run(layer, x, x, use_causal_mask=True)
    y, _ = layer.decode(x, layer.init_cache(3, 4))
    assert_close(run(ops.stop_gradient, y), full)


class Turned(MultiHeadAttention):
    """Rotary embeddings as one puts them into Keras's layer."""

    def _compute_attention(
        self, query, key, value, attention_mask=None, training=None, return_attention_scores=False
    ):
        self.seen = attention_mask
        turn = RotaryEmbedding()
        query, key = turn.rotate(query), turn.rotate(key)
        return super()._compute_attention(
            query, key, value, attention_mask, training, return_attention_scores
        )


@pytest.mark.parametrize("masked", [False, True])
def test_a_subclass_with_attention_of_its_own(rng, masked):
    layer, (x, c) = build(rng, {"key_dim": 4, "position": RotaryEmbedding()}, (3, 5, 6))
    given = {"query_mask": KEEP_KEYS, "value_mask": KEEP_KEYS, "use_causal_mask": True}
    given = given if masked else {}
    own = Turned(2, 4)
    own(x, c)
    own.set_weights(layer.get_weights())
    expected, scores = run(layer, x, c, return_attention_scores=True, **given)
    output, weights = run(own, x, c, return_attention_scores=True, **given)
    assert_close(run(own, x, c, **given), expected)
    for found in (weights, run(own.attention_weights, x, c, **given)):
        assert_close(found, scores)
    assert_close(output, expected)
    if masked:
        assert own.seen.shape == (3, 5, 5)
    with pytest.raises(ValueError, match=r"overrides `_compute_attention` cannot decode.*Turned"):
        own.init_cache(3, 5)


def test_a_subclass_with_what_is_not_called():
    with pytest.raises(TypeError, match=r"Softer overrides _masked_softmax, which .* not call"):

        class Softer(MultiHeadAttention):
            def _masked_softmax(self, scores, mask=None):
                return scores


class Cached(MultiHeadAttention):
    """A cache around the projections and the attention, as KerasHub's layer has it."""

    def call(self, query, value, cache=None, index=None, attention_mask=None):
        query = self._query_dense(query)
        key, value = self._key_dense(value), self._value_dense(value)
        if cache is not None:
            key = ops.slice_update(cache[:, 0], [0, index, 0, 0], key)
            value = ops.slice_update(cache[:, 1], [0, index, 0, 0], value)
        y, _ = self._compute_attention(
            query=query, key=key, value=value, attention_mask=attention_mask,
            return_attention_scores=False, training=False,
        )  # fmt: skip
        return self._output_dense(y), ops.stack((key, value), axis=1)


def test_a_subclass_with_a_cache(rng):
    layer = Cached(2, 3)
    x = rng.normal(size=(3, 4, 6)).astype("float32")
    layer.build(x.shape, x.shape)
    shake(layer)
    mask = np.tri(4, dtype="int32")[None]
    expected, _ = run(layer, x, x, attention_mask=mask)
    plain = MultiHeadAttention(2, 3)
    plain(x, x)
    plain.set_weights(layer.get_weights())
    assert_close(run(plain, x, x, use_causal_mask=True), expected)
    cache = np.zeros((3, 2, 4, 2, 3), "float32")
    for t in range(4):
        step = x[:, t : t + 1]
        y, cache = run(layer, step, step, cache=cache, index=t, attention_mask=mask[:, t : t + 1])
        assert_close(y[:, 0], expected[:, t])


def test_blocks_of_keras_hub(rng, monkeypatch):
    """With the drop-in in their places, and the layer with a cache derived from it."""
    hub = pytest.importorskip("keras_hub", reason="KerasHub is missing; tox installs it")
    module = importlib.import_module("keras_hub.src.layers.modeling.transformer_decoder")
    cached = vars(module.CachedMultiHeadAttention)
    own = {name: x for name, x in cached.items() if name not in ("__dict__", "__weakref__")}
    ours = type("CachedMultiHeadAttention", (MultiHeadAttention,), own)
    x, c = (rng.normal(size=(3, steps, 8)).astype("float32") for steps in (5, 4))

    def outputs(encoder, decoder):
        def all_ways(x, c, keep, *caches):
            step = {
                "self_attention_cache": caches[0],
                "self_attention_cache_update_index": 0,
                "cross_attention_cache": caches[1],
                "cross_attention_cache_update_index": 0,
            }
            return (
                encoder(x, padding_mask=keep),
                decoder(x, c, decoder_padding_mask=keep),
                encoder(x, return_attention_scores=True)[1],
                *decoder(x[:, :1], c, **step),
            )

        caches = (np.zeros((3, 2, steps, 2, 4), "float32") for steps in (5, 4))
        given = [ops.convert_to_tensor(a) for a in (x, c, KEEP_KEYS, *caches)]
        encoded, decoded, *others = run(quick(all_ways), *given)
        return encoded[KEEP_KEYS], decoded[KEEP_KEYS], *others

    def blocks():
        pair = hub.layers.TransformerEncoder(16, 2), hub.layers.TransformerDecoder(16, 2)
        shake(pair[0], [x])
        shake(pair[1], [x, c])
        return pair

    theirs = blocks()
    expected = outputs(*theirs)
    monkeypatch.setattr(keras.layers, "MultiHeadAttention", MultiHeadAttention)
    monkeypatch.setattr(module, "CachedMultiHeadAttention", ours)
    replaced = blocks()
    for new, old in zip(replaced, theirs, strict=True):
        assert isinstance(new._self_attention_layer, MultiHeadAttention)
        new.set_weights(old.get_weights())
    for found, wanted in zip(outputs(*replaced), expected, strict=True):
        assert_close(found, wanted)
