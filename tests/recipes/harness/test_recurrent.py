"""LSTMs: their size, and step by step what the whole sequence gives."""

import keras
import numpy as np
import pytest

from recipes.harness.recurrent import DecodingLSTM, lstm_classifier, lstm_of_size


def test_decodes_in_pieces(rng, tmp_path):
    layer = DecodingLSTM(5)
    model = keras.Sequential([keras.Input((None, 3)), layer])
    x = rng.normal(size=(2, 6, 3)).astype("float32")
    whole = keras.ops.convert_to_numpy(model(x))
    cache, pieces = layer.init_cache(2, 6), []
    for piece in (x[:, :4], x[:, 4:5], x[:, 5:]):
        y, cache = layer.decode(piece, cache)
        pieces.append(keras.ops.convert_to_numpy(y))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loaded(x)), whole, rtol=1e-6, atol=1e-7)


def test_padding_behind_the_new_steps_changes_nothing(rng):
    layer = DecodingLSTM(5)
    layer.build((None, None, 3))
    x = rng.normal(size=(1, 4, 3)).astype("float32")
    mask = np.array([[True, True, True, False]])
    _, padded = layer.decode(x, layer.init_cache(1, 4), mask=mask)
    _, cut = layer.decode(x[:, :3], layer.init_cache(1, 4))
    for one, other in zip(padded, cut, strict=True):
        one, other = map(keras.ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_size(layers):
    model = lstm_of_size(20_000, 11, 6, layers=layers, dropout=0.1)
    assert model.count_params() == pytest.approx(20_000, rel=0.03)
    assert model.output_shape == (None, 6, 11)
    narrower = lstm_of_size(17_000, 11, 6, layers=layers, dropout=0.1)
    assert narrower.count_params() < model.count_params()


def test_classifier_does_not_see_padding():
    model = lstm_classifier(9, 3, 5, width=4, dropout=0.5)
    tokens = np.array([[3, 4, 0, 0, 0]])
    logits = keras.ops.convert_to_numpy(model(tokens))
    assert logits.shape == (1, 3)
    changed = model.get_layer("embedding").get_weights()[0]
    changed[0] += 1
    model.get_layer("embedding").set_weights([changed])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(tokens)), logits, rtol=1e-6)
