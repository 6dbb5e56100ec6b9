import keras
import numpy as np
import pytest

from kattn import layers
from kattn.generation import FunctionalDecoder, GreedySampler, generate
from tests.compute import assert_close, quick, run
from tests.generation_models import VOCABULARY, WIDTH, functional, ready, uncached

TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], "int32")


class Counted(keras.layers.Layer):
    """Adds the number of the step; its cache is the number of steps."""

    def call(self, x):
        steps = keras.ops.arange(keras.ops.shape(x)[1], dtype="int32")
        return x + keras.ops.cast(steps, x.dtype)[:, None]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        return keras.ops.zeros((batch_size,), "int32")

    def decode(self, x, cache, mask=None):
        steps = cache[:, None] + keras.ops.arange(x.shape[1], dtype="int32")
        return x + keras.ops.cast(steps, x.dtype)[..., None], cache + x.shape[1]


def attention(**options):
    return layers.SelfAttention(2, causal=True, **options)


def with_many_kinds():
    """Attention of several kinds, one layer used twice, a model in the model, operations."""
    tokens = keras.Input((None,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(VOCABULARY, WIDTH)
    h = layers.LearnedPositions(9)(layers.SinusoidalPositions()(embedding(tokens)))
    h = Counted()(h)
    shared = attention(position=layers.RotaryEmbedding(), window=3)
    h = h + shared(keras.layers.LayerNormalization()(h))
    h = keras.layers.Add()([h, keras.layers.Dropout(0.5)(shared(h))])
    inner = keras.Input((None, WIDTH))
    h = keras.Model(inner, inner + layers.LinearAttention(2, causal=True)(inner))(h)
    h = layers.TransformerDecoderBlock(attention(position=layers.ALiBi()))(h)
    h = layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=True)
    stack = keras.Sequential([keras.layers.Dense(WIDTH, "gelu"), keras.layers.BatchNormalization()])
    return ready(keras.Model(tokens, embedding(stack(h), reverse=True)))


def test_equals_the_whole_pass():
    model = with_many_kinds()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    decoder = FunctionalDecoder(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    cache, outputs, decode = decoder.init_cache(2, 5), [], quick(decoder.decode)
    for begin, end in ((0, 3), (3, 4), (4, 5)):
        y, cache = decode(TOKENS[:, begin:end], cache)
        outputs.append(run(keras.ops.copy, y))
    assert_close(np.concatenate(outputs, axis=1), run(quick(model), TOKENS))


def test_generates_as_without_a_cache():
    model = functional(attention(position=layers.RotaryEmbedding()), keras.layers.Dense(WIDTH))
    prompts = [[3, 1, 4], [5]]
    expected = uncached(model, prompts, 4, GreedySampler())
    np.testing.assert_array_equal(generate(model, prompts, 4), expected)


def test_sequential_models_and_implicit_masks():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY, WIDTH, mask_zero=True),
            attention(),
            keras.layers.Dense(VOCABULARY),
        ]
    )
    check_padding(ready(model))


def test_masks_that_the_model_computes():
    """As the layers get them explicitly."""
    tokens = keras.Input((None,), dtype="int32")
    h, real = keras.layers.Embedding(VOCABULARY, WIDTH)(tokens), tokens > 0
    h = attention()(h, mask=real)
    masks = {"query_mask": real, "value_mask": real}
    h = layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=True, **masks)
    check_padding(ready(keras.Model(tokens, keras.layers.Dense(VOCABULARY)(h))))


def check_padding(model):
    """Token 0 is padding, also where it stands in the middle of a piece."""
    tokens = np.array([[3, 0, 1, 4], [0, 0, 9, 2]], "int32")
    decoder = FunctionalDecoder(model)
    decode = quick(decoder.decode)
    first, cache = decode(tokens[:, :2], decoder.init_cache(2, 4))
    second, _ = decode(tokens[:, 2:], cache)
    found = np.concatenate([run(keras.ops.stop_gradient, y) for y in (first, second)], axis=1)
    assert_close(found[tokens > 0], run(quick(model), tokens)[tokens > 0])


BAD = {
    "conv": (lambda: keras.layers.Conv1D(8, 3, name="blur"), r"layer='blur', of class Conv1D"),
    "stock": (
        lambda: lambda h: keras.layers.MultiHeadAttention(2, 4, name="stock")(h, h),
        r"replace_attention; received: layer='stock'",
    ),
    "mask": (
        lambda: lambda h: attention(name="free")(h, mask=keras.ops.ones((1, 2), "bool")),
        r"called with its sequence alone.*layer='free'",
    ),
    "mask of queries": (
        lambda: (
            lambda h: layers.MultiHeadAttention(2, 4)(
                h, h, query_mask=h[..., 0] > 0, use_causal_mask=True
            )
        ),
        r"called with its sequence alone",
    ),
    "not causal": (
        lambda: lambda h: layers.MultiHeadAttention(2, 4, name="free")(h, h),
        r"use_causal_mask=True; received: layer='free'",
    ),
    "other keys": (
        lambda: lambda h: layers.MultiHeadAttention(2, 4)(h, h + 1, use_causal_mask=True),
        r"called with its sequence alone",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_layers(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        FunctionalDecoder(functional(make()))


def test_a_layer_that_is_not_causal():
    decoder = FunctionalDecoder(functional(layers.SelfAttention(2, name="free")))
    with pytest.raises(ValueError, match=r"Only a causal layer can decode.*layer='free'"):
        decoder.init_cache(1, 4)


def test_bad_models():
    x, y = keras.Input((None,)), keras.Input((None,))
    message = r"functional model of one input and one output"
    with pytest.raises(ValueError, match=message):
        FunctionalDecoder(keras.Model([x, y], x + y))
    with pytest.raises(ValueError, match=message):
        FunctionalDecoder(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="takes no `context`"):
        FunctionalDecoder(functional()).init_cache(1, 4, context=TOKENS)
    with pytest.raises(ValueError, match="`length` must be an integer >= 1"):
        FunctionalDecoder(functional()).init_cache(1, 0)
