"""The functional model: what it computes, that it writes, trains and saves."""

import keras
import numpy as np
import pytest

import kattn
from kattn.generation.functional_decoder import FunctionalDecoder
from kattn.layers import DecodingRNN, SelfAttentionRNN
from kattn.models import sa_rnn
from tests.checks import shake
from tests.compute import assert_close, quick, run

KINDS = {
    "classes of tokens": {"vocabulary_size": 11, "num_classes": 3, "bidirectional": True},
    "classes of vectors": {"input_width": 5, "num_classes": 3, "num_layers": 2, "rnn": "gru"},
    "language": {"vocabulary_size": 11, "num_layers": 2, "combine": "gate", "window": 3},
    "forecasts": {"input_width": 2, "input_length": 12, "horizon": 4, "segment_length": 3},
    "joint forecasts": {
        "input_width": 2,
        "input_length": 12,
        "horizon": 4,
        "segment_length": 3,
        "channel_independent": False,
        "pooling": "last",
    },
    "plain": {"vocabulary_size": 11, "num_heads": None, "rnn": "gru"},
}


def made(kind, **options):
    """A small model, its weights off their initial values, and an input."""
    given = {"units": 8, "num_heads": 2, **KINDS[kind], **options}
    model = sa_rnn(**given)
    shake(model)
    rng = np.random.default_rng(0)
    if "vocabulary_size" in given:
        return model, rng.integers(1, 11, size=(3, 12)).astype("int32")
    return model, rng.normal(size=(3, 12, given["input_width"])).astype("float32")


def weights(model, name):
    return [np.float64(run(lambda w=w: w + 0.0)) for w in model.get_layer(name).weights]


def through(model, h):
    """The outputs of the recurrent layers, which have oracles of their own."""
    for layer in model.layers:
        if isinstance(layer, SelfAttentionRNN | DecodingRNN):
            h = run(quick(layer), np.asarray(h, "float32"))
    return h


@pytest.mark.parametrize("kind", ["language", "plain", "classes of tokens"])
def test_tokens(kind):
    model, x = made(kind)
    (table,), (kernel, bias) = weights(model, "embedding"), weights(model, "logits")
    h = through(model, table[x])
    h = h.mean(1) if kind == "classes of tokens" else h
    assert_close(run(quick(model), x), h @ kernel + bias, 2e-5)


def test_vectors():
    model, x = made("classes of vectors")
    kernel, bias = weights(model, "logits")
    assert_close(run(quick(model), x), through(model, x).mean(1) @ kernel + bias, 2e-5)


def test_forecasts():
    """Each channel by itself, of any level and size."""
    model, x = made("forecasts")
    x = 100.0 + 7.0 * x
    (w, b), (kernel, bias) = weights(model, "embedding"), weights(model, "forecast")
    found = run(quick(model), x)
    for channel in range(2):
        series = x[:, :, channel].astype(float)
        mean = series.mean(1, keepdims=True)
        deviation = np.sqrt(series.var(1, keepdims=True) + 1e-5)
        segments = ((series - mean) / deviation).reshape(3, 4, 3)
        h = through(model, segments @ w + b).reshape(3, -1)
        assert_close(found[:, :, channel], (h @ kernel + bias) * deviation + mean, 1e-5)


def test_forecasts_of_all_channels_together():
    """The same forecast from the last segment, and each segment with all channels in it."""
    model, x = made("joint forecasts")
    (w, b), (kernel, bias) = weights(model, "embedding"), weights(model, "forecast")
    series = 100.0 + 7.0 * x.astype(float)
    mean = series.mean(1, keepdims=True)
    deviation = np.sqrt(series.var(1, keepdims=True) + 1e-5)
    segments = ((series - mean) / deviation).reshape(3, 4, 3, 2).swapaxes(2, 3).reshape(3, 4, 6)
    h = through(model, segments @ w + b)[:, -1]
    wanted = (h @ kernel + bias).reshape(3, 2, 4).swapaxes(1, 2) * deviation + mean
    assert_close(run(quick(model), 100.0 + 7.0 * x), wanted, 1e-5)


@pytest.mark.parametrize("alone", [True, False])
def test_channels_see_each_other_only_together(alone):
    model, x = made("forecasts", channel_independent=alone, pooling="last")
    changed = np.copy(x)
    changed[:, :, 0] = x[::-1, :, 0]
    same = np.abs(run(quick(model), changed) - run(quick(model), x))[:, :, 1].max() < 1e-6
    assert same == alone


def test_padding_changes_nothing():
    model, x = made("classes of tokens", mask_zero=True)
    x[2] = 0  # a text without a token
    longer = np.pad(x, [(0, 0), (0, 3)])
    found = run(quick(model), longer)
    assert_close(found, run(quick(model), x))
    _, bias = weights(model, "logits")
    assert_close(found[2], bias)


@pytest.mark.parametrize("kind", ["language", "plain"])
def test_decodes(kind):
    model, x = made(kind)
    decoder = FunctionalDecoder(model)
    full = run(quick(model), x)
    decode, cache, found = quick(decoder.decode), decoder.init_cache(3, 12), []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        y, cache = decode(x[:, start:end], cache)
        found.append(run(lambda y=y: y))
    assert_close(np.concatenate(found, axis=1), full, 2e-5)
    written = kattn.generate(model, x[:, :4], 3)
    assert written.shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_saves(kind, tmp_path):
    model, x = made(kind, dropout=0.1)
    rng = np.random.default_rng(1)
    shape = run(model, x).shape
    if "horizon" in KINDS[kind]:
        model.compile("sgd", "mse")
        y = rng.normal(size=shape)
    else:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        y = rng.integers(3, size=shape[:-1])
    before = [np.copy(w) for w in model.get_weights()]
    history = model.fit(x, y, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    moved = [np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(m > 0 for m, w in zip(moved, model.weights, strict=True) if w.trainable)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(again.predict(x, verbose=0), model.predict(x, verbose=0))


BAD = {
    "no input": ({"num_classes": 3}, r"One of `vocabulary_size`.*`input_width`.*must be given"),
    "two inputs": ({"vocabulary_size": 3, "input_width": 3}, r"One of `vocabulary_size`"),
    "two outputs": (
        {"input_width": 3, "num_classes": 3, "horizon": 3, "input_length": 4},
        r"Only one of `num_classes` and `horizon`",
    ),
    "no length": (
        {"input_width": 3, "horizon": 3},
        r"Forecasts need `input_length` and.*input_length=None",
    ),
    "tokens ahead": (
        {"vocabulary_size": 3, "horizon": 3, "input_length": 4},
        r"Forecasts need .*`input_width` beside `horizon`.*vocabulary_size=3",
    ),
    "no output": ({"input_width": 3}, r"`num_classes` or `horizon` must be given"),
    "segments": (
        {"input_width": 3, "horizon": 3, "input_length": 10, "segment_length": 4},
        r"`segment_length` must divide `input_length`; .*=4, input_length=10",
    ),
    "both ways": (
        {"vocabulary_size": 3, "bidirectional": True},
        r"`bidirectional` must be False for a language model",
    ),
    "odd": (
        {
            "vocabulary_size": 3,
            "num_classes": 2,
            "bidirectional": True,
            "units": 7,
            "num_heads": None,
        },
        r"`units` even.*units=7",
    ),
    "no tokens": (
        {"input_width": 3, "num_classes": 2, "mask_zero": True},
        r"`mask_zero` is for models where `vocabulary_size` is given; .*mask_zero=True",
    ),
    "no series": (
        {"vocabulary_size": 3, "segment_length": 2},
        r"`segment_length` is for models where `horizon` is given; .*segment_length=2",
    ),
    "no channels": (
        {"vocabulary_size": 3, "channel_independent": False},
        r"`channel_independent` is for models where `horizon` is given; .*False",
    ),
    "no forecast": (
        {"vocabulary_size": 3, "pooling": "last"},
        r"`pooling` is for models where `horizon` is given; .*'last'",
    ),
    "pooling": (
        {"input_width": 3, "horizon": 3, "input_length": 4, "pooling": "mean"},
        r"`pooling` must be one of flatten, last.*'mean'",
    ),
    "no attention": (
        {"vocabulary_size": 3, "num_heads": None, "window": 2},
        r"`window` is for models where there is attention; .*window=2",
    ),
    "rnn": ({"vocabulary_size": 3, "rnn": "mlp"}, r"`rnn` must be one of lstm, gru.*'mlp'"),
    "units": ({"vocabulary_size": 3, "units": 0}, r"`units` must be an integer >= 1"),
    "heads": ({"vocabulary_size": 3, "num_heads": 0}, r"`num_heads` must be an integer >= 1"),
    "units of heads": (
        {"vocabulary_size": 3, "units": 6, "num_heads": 4},
        r"`units` must be divisible by `num_heads`; received: units=6, num_heads=4",
    ),
    "classes": ({"vocabulary_size": 3, "num_classes": 0}, r"`num_classes` must be an integer"),
    "dropout": ({"vocabulary_size": 3, "dropout": 1.0}, r"`dropout` must be a fraction"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        sa_rnn(**options)
