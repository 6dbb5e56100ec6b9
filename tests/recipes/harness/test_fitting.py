"""Fits, their results, and models that start anew."""

import keras
import numpy as np
import pytest

from kattn.data import EpochShuffled
from recipes import harness


def model_and_data():
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(harness.adamw(0.1, 0.01), "mse")
    x = rng.normal(size=(20, 3)).astype("float32")
    return model, EpochShuffled((x, x.sum(-1, keepdims=True)), batch_size=5, seed=0)


def test_epochs_are_validated_and_timed(tmp_path, capsys):
    model, data = model_and_data()
    folder = harness.RunFolder(tmp_path)
    seen = []

    def validate(model):
        seen.append(model.get_weights()[0].copy())
        return {"loss": float(len(seen))}

    epochs = harness.fit(
        model, data, [], folder, name="x", epochs=3, every=2, label="A fit", validate=validate
    )
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert [epoch["val_loss"] for epoch in epochs] == [1.0, 2.0, 3.0]
    assert epochs[2]["loss"] < epochs[0]["loss"]
    assert all(epoch["seconds"] > 0 for epoch in epochs)
    np.testing.assert_array_equal(seen[-1], model.get_weights()[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"A fit: epoch 2/3  loss {epochs[1]['loss']:.4g}  val_loss 2"

    assert list((tmp_path / "backups/x").iterdir())
    harness.finish(folder, "x", {"test": {"loss": 0.25}})
    assert capsys.readouterr().out == "x: loss 0.25\n"
    assert not (tmp_path / "backups").exists()
    assert folder.read_json("history/x.json") == {"test": {"loss": 0.25}}


@pytest.mark.parametrize("stopped", [False, True])
def test_the_best_weights_are_kept(tmp_path, stopped):
    """Also where the fit was stopped behind the best epoch, and goes on."""
    folder = harness.RunFolder(tmp_path)
    losses, seen = [3.0, 1.0, 2.0, 1.5], []

    def validate(model):
        seen.append(model.get_weights()[0].copy())
        if stopped and len(seen) == 4:
            raise KeyboardInterrupt
        return {"loss": losses[min(len(seen), 4) - 1]}

    def fit():
        model, data = model_and_data()
        options = {"name": "x", "epochs": 4, "every": 2, "validate": validate, "keep": "best"}
        harness.fit(model, data, [], folder, **options)
        return model

    if stopped:
        with pytest.raises(KeyboardInterrupt):
            fit()
        assert (tmp_path / "backups/x.weights.h5").is_file()
    model = fit()
    np.testing.assert_array_equal(model.get_weights()[0], seen[1])
    assert not np.array_equal(seen[1], seen[-1])
    harness.finish(folder, "x", {"test": {}})
    assert not (tmp_path / "backups").exists()


def test_unfinished_fits(tmp_path):
    folder = harness.RunFolder(tmp_path)
    for name in ("a-seed0", "b-seed1"):
        harness.finish(folder, name, {"test": {}})
    left = [("a", 1, "a-seed1"), ("b", 0, "b-seed0")]
    assert list(harness.unfinished(folder, ["a", "b"], 2)) == left
    assert harness.read_results(folder, ["b"], 2) == {"b": [None, {"test": {}}]}


def test_killed_before_its_backups_were_removed(tmp_path):
    """A fit that has a result leaves nothing else, whenever the run was killed."""
    folder = harness.RunFolder(tmp_path)
    for name in ("a-seed0", "a-seed1"):
        (tmp_path / "backups" / name).mkdir(parents=True)
        (tmp_path / f"backups/{name}.weights.h5").write_text("")
    folder.write_json("history/a-seed0.json", {})
    assert list(harness.unfinished(folder, ["a"], 2)) == [("a", 1, "a-seed1")]
    left = {path.name for path in (tmp_path / "backups").iterdir()}
    assert left == {"a-seed1", "a-seed1.weights.h5"}
    folder.write_json("history/a-seed1.json", {})
    assert list(harness.unfinished(folder, ["a"], 2)) == []
    assert not (tmp_path / "backups").exists()


def test_gains_and_biases_do_not_decay():
    """One update with a gradient of 0 shows what decays."""
    inputs = keras.Input((2,))
    x = keras.layers.LayerNormalization(name="norm")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head", bias_initializer="ones")(x))
    optimizer = harness.adamw(0.5, 0.5)
    before = {weight.path: np.array(weight.numpy()) for weight in model.trainable_variables}
    zeros = [keras.ops.zeros_like(weight) for weight in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for weight in model.trainable_variables:
        kept = 0.75 if weight.name == "kernel" else 1.0
        np.testing.assert_allclose(weight.numpy(), kept * before[weight.path], rtol=1e-6)


def test_predict_fills_the_last_batch_up():
    class Model:
        def __init__(self):
            self.sizes = []

        def predict(self, x, batch_size, verbose):
            self.sizes.append(len(x))
            assert len(x) % batch_size == 0
            return x * 2

    x = np.arange(129.0)[:, None]
    model = Model()
    np.testing.assert_array_equal(harness.predict(model, x, 2), 2 * x)
    assert model.sizes == [128, 2]


def test_a_restarted_model_trains_as_a_new_one():
    model, data = model_and_data()
    restartable = harness.Restartable(model)
    weights = model.get_weights()
    losses = []
    for _ in range(2):
        data.set_epoch(0)
        history = restartable.restart(weights).fit(data, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
