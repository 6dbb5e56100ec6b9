import json

import keras
import numpy as np
import pytest

from kattn import layers, models
from kattn.presets import from_preset, save_preset
from tests.compute import assert_close, result

TOKENS = np.array([[3, 1, 4, 1, 5]], "int32")


def make():
    return models.TransformerLM(
        11, 1, 2, 8, position=layers.LearnedPositions(6), activation="swiglu", norm="rms"
    )


@pytest.fixture
def saved(tmp_path):
    model = make()
    model.build((None, 5))
    save_preset(model, tmp_path / "new")
    return model, tmp_path / "new"


def test_round_trip(saved):
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "config.json",
        "metadata.json",
        "model.weights.h5",
    ]
    (folder / "README.md").write_text("Of the user's.")
    (folder / "tokenizer.json").write_text("{}")
    again = from_preset(folder)
    assert not again.compiled
    assert_close(result(again, TOKENS), result(model, TOKENS), 0)


def test_a_position_of_several_layers_stays_one(tmp_path):
    position = layers.T5RelativeBias(8, 8)
    inputs = keras.Input((None, 8))
    attention = (layers.SelfAttention(2, position=position, name=f"a{i}") for i in range(2))
    model = keras.Model(inputs, next(attention)(next(attention)(inputs)))
    save_preset(model, tmp_path)
    again = from_preset(tmp_path)
    assert again.get_layer("a0").position is again.get_layer("a1").position
    x = np.random.default_rng(0).normal(size=(1, 5, 8)).astype("float32")
    assert_close(result(again, x), result(model, x), 0)


def test_no_code_runs(saved):
    _, folder = saved
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x + 1)])
    save_preset(model, folder)
    with pytest.raises(ValueError, match=r"(?i)lambda"):
        from_preset(folder)


def truncate(folder):
    path = folder / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:-100])


def widen(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["config"]["vocabulary_size"] = 12
    path.write_text(json.dumps(config))


def deepen(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["config"]["num_layers"] = 2
    path.write_text(json.dumps(config))


BAD = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"must hold config\.json"),
    "no weights": (
        lambda folder: (folder / "model.weights.h5").unlink(),
        r"must hold model\.weights\.h5",
    ),
    "truncated": (truncate, r"truncated or damaged; received: file=.*model\.weights\.h5"),
    "misshapen": (widen, r"(?s)could not be loaded.*name=tokens"),
    "missing": (deepen, r"(?s)could not be loaded.*name=qkv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(name, saved):
    spoil, message = BAD[name]
    spoil(saved[1])
    with pytest.raises(ValueError, match=message):
        from_preset(saved[1])


def test_a_model_that_is_not_built(tmp_path):
    with pytest.raises(ValueError, match=r"must be built before it is written"):
        save_preset(make(), tmp_path)
