"""Run folders, progress, costs and statistics."""

import io
import json
import math
import os
import sys

import numpy as np
import pytest

from recipes import harness


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Backend ---


@pytest.fixture
def frameworks(monkeypatch, tmp_path):
    """Pretend which frameworks are installed and what keras.json says; keras not yet imported."""

    def pretend(installed, configured=None):
        monkeypatch.setattr(harness, "find_spec", lambda name: name if name in installed else None)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", "restored afterwards")
        monkeypatch.delenv("KERAS_BACKEND")
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        if configured:
            (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))

    return pretend


@pytest.mark.parametrize(
    ("name", "environment", "configured", "installed", "chosen"),
    [
        ("torch", "jax", "jax", ("jax", "torch"), "torch"),
        (None, "jax", "torch", ("jax", "torch"), "jax"),
        (None, None, "torch", ("jax", "torch"), "torch"),
        (None, None, "tensorflow", ("jax", "torch"), "jax"),  # keras.json names it by itself
        (None, None, None, ("torch",), "torch"),
    ],
)
def test_choose_backend(frameworks, monkeypatch, name, environment, configured, installed, chosen):
    frameworks(installed, configured)
    if environment:
        monkeypatch.setenv("KERAS_BACKEND", environment)
    assert harness.choose_backend(name) == chosen
    assert os.environ["KERAS_BACKEND"] == chosen


@pytest.mark.parametrize(
    ("name", "installed", "message"),
    [
        ("torch", ("jax",), r"kattn\[torch\]'\): backend='torch', installed=\['jax'\]"),
        ("mxnet", ("jax",), "backend='mxnet'"),
        (None, (), "none is installed"),
    ],
)
def test_choose_backend_refuses(frameworks, name, installed, message):
    frameworks(installed)
    with pytest.raises(ValueError, match=message):
        harness.choose_backend(name)


def test_choose_backend_after_keras():
    import keras

    running = keras.backend.backend()
    assert harness.choose_backend(running) == running


# --- Run folders ---


def test_files_appear_whole_or_not_at_all(tmp_path):
    folder = harness.RunFolder(tmp_path)
    folder.write_json("deep/a.json", {"x": 1})

    def stopped_half_way():
        with folder.writing("deep/a.json") as path:
            path.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped_half_way()
    assert folder.read_json("deep/a.json") == {"x": 1}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert folder.read_json("absent.json") is None


def test_new_runs_never_share_a_folder(here):
    first, second = (harness.open_run("task", {"a": 1}).path for _ in range(2))
    assert first != second
    assert first.parent == second.parent
    assert harness.RunFolder(second).read_json("settings.json") == {"a": 1}


def test_new_run_leaves_an_earlier_one_alone(tmp_path):
    harness.open_run("task", {"a": 1}, output=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"output must be a new or an empty folder.*output='.*run'"
    ):
        harness.open_run("task", {"a": 2}, output=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output must be a new or an empty folder"):
        harness.open_run("task", {"a": 2}, output=tmp_path / "file")


def test_resume_finds_the_newest_run_with_the_same_settings(here):
    for name, value in (("20250101-000000", 1), ("20250102-000000", 1), ("20250103-000000", 2)):
        harness.open_run("task", {"a": (value,)}, output=here / "runs" / f"task-{name}")
    found = harness.open_run("task", {"a": (1,)}, resume=True)
    assert found.path.name == "task-20250102-000000"


def test_resume_refuses_other_settings(here):
    harness.open_run("task", {"a": 1, "b": 2}, output=here / "run")
    assert (
        harness.open_run("task", {"a": 1, "b": 2}, output=here / "run", resume=True).path
        == here / "run"
    )
    with pytest.raises(
        ValueError, match=r"resume needs the settings .*\(then, now\)=\{'b': \(2, 3\)\}"
    ):
        harness.open_run("task", {"a": 1, "b": 3}, output=here / "run", resume=True)


@pytest.mark.parametrize("output", [None, "absent"])
def test_resume_without_a_run(here, output):
    with pytest.raises(FileNotFoundError, match=r"resume needs a run .*searched="):
        harness.open_run("task", {}, output=output and here / output, resume=True)


# --- Progress, timing ---


def test_progress_prints_a_line_per_epoch_without_a_terminal(capsys):
    progress = harness.Progress("fit", epochs=2, steps=3)
    for epoch in (1, 2):
        for _ in range(3):
            progress.step()
        progress.epoch(epoch, {"loss": 0.123456})
    progress.close()
    printed = capsys.readouterr()
    assert printed.out == "fit: epoch 1/2  loss 0.1235\nfit: epoch 2/2  loss 0.1235\n"
    assert printed.err == ""


def test_progress_draws_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = harness.Progress("fit", epochs=4, steps=5, first_epoch=2)
    for _ in range(10):
        progress.step()
    progress.epoch(4, {"loss": 0.5})
    progress.close()
    assert "10/20" in terminal.getvalue()  # goes on from epoch 2
    assert "20/20" in terminal.getvalue()
    assert "loss 0.5" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_measure_in_turns():
    calls = []
    values = {"a": iter([100.0, 1.0, 9.0, 2.0]), "b": iter([100.0, 4.0, 6.0, 5.0])}

    def case(name):
        calls.append(name)
        return next(values[name])

    cases = {name: lambda name=name: case(name) for name in values}
    assert harness.measure_in_turns(cases, turns=3, warm_up=1) == {"a": 2.0, "b": 5.0}
    assert calls == ["a", "b", "a", "b", "a", "b", "a", "b"]


# --- Costs ---


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_layer_costs(data_format):
    import keras

    from kattn.layers import SelfAttention2D

    shape = (7, 5, 3) if data_format == "channels_last" else (3, 7, 5)
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(6, (3, 2), 2, padding="same", data_format=data_format, name="conv")(x)
    x = SelfAttention2D(
        2, key_dim=5, value_dim=4, key_stride=3, data_format=data_format, name="attention"
    )(x)
    x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="dense")(x))
    costs = {cost.layer: cost for cost in harness.layer_costs(model)}
    multiply_adds = {  # 4 x 3 positions of 6 channels, pooled to 2 x 1 keys
        "conv": 12 * 6 * (3 * 2 * 3),
        "attention": 12 * 6 * (10 + 10 + 8) + 12 * 2 * 10 + 12 * 2 * 8 + 12 * 8 * 6,
        "dense": 6 * 10,
    }
    assert {n: c.flops for n, c in costs.items() if c.flops} == {
        n: 2 * v for n, v in multiply_adds.items()
    }
    assert sum(cost.parameters for cost in costs.values()) == model.count_params()


def test_layer_costs_does_not_guess():
    import keras

    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, keras.layers.LSTM(2, name="memory")(inputs))
    with pytest.raises(ValueError, match="a rule for every layer: layer=memory, kind='LSTM'"):
        harness.layer_costs(model)


# --- Statistics, tables, plots ---


def test_statistics():
    mean, spread = harness.mean_and_spread([1.0, 2.0, 6.0])
    assert (mean, spread) == (3.0, pytest.approx(math.sqrt(7)))
    assert math.isnan(harness.mean_and_spread([1.0])[1])
    low, high = harness.paired_interval([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7 / 3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert harness.paired_interval([1.0]) is None


def test_table():
    expected = "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert harness.table(["a", "b"], [["x", 1]]) == expected


def test_machine_and_versions():
    assert set(harness.machine()) == {"CPU", "cores", "system"}
    found = harness.versions("numpy", "no-such-package")
    assert found["numpy"] == np.__version__
    assert found["no-such-package"] == "not installed as a package"


@pytest.mark.parametrize("runs", [1, 3])
def test_curves(tmp_path, runs):
    epochs = [{"loss": 1 / (i + 1), "accuracy": i / 10} for i in range(4)]
    figure = harness.curves(
        {"plain": [epochs] * runs, "other": [epochs] * runs},
        {"loss": "training loss", "accuracy": "accuracy"},
        {"plain": [0.5] * runs, "other": [0.6] * runs},
        "final",
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["training loss", "accuracy", "final"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    harness.RunFolder(tmp_path).write_figure("curves.png", figure)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
