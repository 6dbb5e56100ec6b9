"""A language model that remembers the calls before, as Transformer-XL does."""

import keras
import numpy as np
import pytest
from keras import ops

import kattn
from kattn import layers, masks, models
from tests.checks import shake
from tests.compute import assert_close, differentiate, run

TOKENS = np.random.default_rng(0).integers(0, 9, (2, 12)).astype("int32")  # of 11


def make(memory_length=12, *, num_layers=2, batch=2, **options):
    """A model of width 8 and 11 tokens with weights off their beginnings, built for a batch."""
    position = layers.RotaryEmbedding()
    model = models.TransformerLM(
        11, num_layers, 2, 8, position=position, memory_length=memory_length, **options
    )
    model.build((batch, 4))
    shake(model)
    model.reset_memory()
    return model


def segments(model, tokens, length=4):
    """The logits of a text that is read in segments."""
    starts = range(0, tokens.shape[1], length)
    found = [run(ops.copy, model(tokens[:, i : i + length])) for i in starts]
    return np.concatenate(found, axis=1)


def without_memory(model):
    """The same model, which reads all at once."""
    config = {**model.get_config(), "memory_length": None}
    other = models.TransformerLM.from_config(config)
    other.build((None, None))
    weights = {w.path.split("/", 1)[1]: w for w in model.weights}
    for weight in other.weights:
        weight.assign(weights[weight.path.split("/", 1)[1]])
    return other


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "post", "remat": True},
        {"placement": "parallel", "norm": "rms", "tie_embeddings": False},
    ],
)
def test_a_text_in_segments_equals_all_at_once(options):
    """As long as nothing is forgotten; and a batch that is forgotten leaves no trace."""
    model = make(**options)
    wanted = run(without_memory(model), TOKENS)
    segments(model, TOKENS[:, ::-1].copy())
    model.reset_memory()
    assert_close(segments(model, TOKENS), wanted)


def test_padding_is_not_remembered():
    """A text that begins with padding, be that a whole segment, is as one without."""
    model = make(padding_token=10)
    padded = np.concatenate([np.full((2, 6), 10, "int32"), TOKENS[:, :6]], axis=1)
    padded[0] = TOKENS[0]
    found = segments(model, padded)
    whole = without_memory(model)
    assert_close(found[0], run(whole, TOKENS)[0])
    assert_close(found[1, 6:], run(whole, TOKENS[:, :6])[1])


def test_what_is_forgotten():
    """One block sees the M steps before its segment; two would look further back."""
    model = make(memory_length=3, num_layers=1)
    steps = np.arange(12)
    first_seen = 4 * (steps // 4) - 3
    sees = (steps <= steps[:, None]) & (steps >= first_seen[:, None])
    wanted = run(without_memory(model), TOKENS, mask=sees[None])
    assert_close(segments(model, TOKENS), wanted)


def test_no_gradient_flows_into_the_memory():
    """The vector of a token of the first batch stays as it is in the second step of `fit`."""
    model = make(tie_embeddings=False)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    table = model._table.embeddings
    first, second = np.full((2, 4), 10, "int32"), TOKENS[:, :4]
    before = run(ops.copy, table)
    model.train_on_batch(first, second)
    middle = run(ops.copy, table)
    assert np.abs(middle[10] - before[10]).max() > 1e-6
    model.train_on_batch(second, second)
    after = run(ops.copy, table)
    np.testing.assert_array_equal(after[10], middle[10])
    assert np.abs(after[TOKENS[0, 0]] - middle[TOKENS[0, 0]]).max() > 1e-6


def test_no_gradient_flows_into_the_memory_of_a_block():
    attention = layers.SelfAttention(2, causal=True, dtype="float32")
    block = layers.TransformerDecoderBlock(attention, layers.FeedForward(6))
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    block.build(x.shape)
    shake(block)

    def through(x, memory):  # adds what has a gradient, as some backends have none else
        return block(x, memory=memory) + ops.sum(memory)

    _, (of_x, of_memory) = differentiate(through, [x, 2.0 * x], np.ones_like(x))
    assert np.abs(of_x).max() > 1e-3
    assert_close(of_memory, np.full_like(x, x.size))


def memory_of(model):
    return [run(ops.copy, variable) for variable in model._stack.memory]


def test_saved_without_its_memory(tmp_path):
    """It is loaded for batches of another size, and writes as before."""
    model = make()
    segments(model, TOKENS)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert not memory_of(again)[-1].any()
    model.reset_memory()
    assert_close(segments(again, TOKENS), segments(model, TOKENS))
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(batch=1)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_close(segments(other, TOKENS[:1])[0], segments_anew(model)[0])
    prompts = TOKENS[:1, :5]
    np.testing.assert_array_equal(
        kattn.generate(model, prompts, 3), kattn.generate(without_memory(model), prompts, 3)
    )


def segments_anew(model):
    model.reset_memory()
    return segments(model, TOKENS)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`memory_length` must be an integer >= 1.*=0"):
        make(memory_length=0)
    with pytest.raises(ValueError, match=r"`position` must be one of attention layers"):
        models.TransformerLM(11, 2, 2, 8, position=layers.SinusoidalPositions(), memory_length=4)
    with pytest.raises(ValueError, match=r"batch size must be known.*batch_size=None"):
        make(batch=None)
    model = make()
    with pytest.raises(ValueError, match=r"batch size must be that of the memory.*\(1, 4, 8\)"):
        model(TOKENS[:1, :4])
    with pytest.raises(ValueError, match=r"With `memory`, `mask` must be padding"):
        model(TOKENS[:, :4], mask=masks.Causal())
