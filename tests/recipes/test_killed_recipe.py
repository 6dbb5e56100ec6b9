"""The comparison of folders sees what differs; and, where asked for, ten kills of a recipe.

KATTN_KILLS=10 python -m pytest tests/recipes/test_killed_recipe.py  # ten minutes or so
"""

import json
import os
import sys
import time

import keras
import numpy as np
import pytest
from PIL import Image

from tests.recipes import killed_recipe

FLAGS = [
    *("--epochs", "5"),
    *("--checkpoint-every", "3"),
    *("--schedule", "one_cycle"),
    *("--clip", "agc:0.05"),
]
TABLE = "| Model | Loss | Step, ms | Fit, s |\n| --- | ---: | ---: | ---: |\n| CNN | 1 | 2 | 3 |\n"


@pytest.fixture
def runs(tmp_path):
    """Two folders that differ in times only."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    folders = [tmp_path / name for name in ("one", "other")]
    for seconds, run in enumerate(folders):
        (run / "history").mkdir(parents=True)
        model.save(run / "model.keras")
        epochs = [{"loss": 1.5, "seconds": seconds}]
        (run / "history/fit.json").write_text(json.dumps({"epochs": epochs}))
        (run / "report.md").write_text(TABLE.replace("2 | 3", f"2 | {seconds}") + "\nWords\n")
        Image.fromarray(np.zeros((2, 3), "uint8")).save(run / "a.png")
    return folders


def change_weights(run):
    model = keras.saving.load_model(run / "model.keras")
    model.optimizer.variables[-1].assign(model.optimizer.variables[-1] + 1e-7)
    model.save(run / "model.keras")


CHANGES = {
    "model.keras": change_weights,
    "history/fit.json": lambda run: (run / "history/fit.json").write_text('{"epochs": []}'),
    "report.md": lambda run: (run / "report.md").write_text(TABLE.replace("1 |", "4 |")),
    "a.png": lambda run: Image.fromarray(np.eye(2, 3, dtype="uint8")).save(run / "a.png"),
    "b.png": lambda run: Image.fromarray(np.eye(2, 3, dtype="uint8")).save(run / "b.png"),
}


def test_times_are_no_difference(runs):
    assert killed_recipe.differences(*runs) == []


@pytest.mark.parametrize("name", CHANGES)
def test_all_else_is(runs, name):
    CHANGES[name](runs[1])
    assert killed_recipe.differences(*runs) == [name]
    assert killed_recipe.differences(*reversed(runs)) == [name]


RUNNING = """
import pathlib, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
run.mkdir(exist_ok=True)
settings = run / "settings.json"
if not settings.exists():
    settings.write_text("{}")
    time.sleep(600)
(run / "report.md").write_text(" ".join(sys.argv[-1:]))
"""


def test_a_run_is_killed_and_goes_on(tmp_path, capsys):
    run = tmp_path / "run"

    def once_it_has_begun():
        while not (run / "settings.json").exists():
            time.sleep(0.01)
        yield 0.0

    command = [sys.executable, "-c", RUNNING]
    assert killed_recipe.survive(command, run, once_it_has_begun()) == 1
    assert (run / "report.md").read_text() == "--resume"
    assert "run: killed after 0.0 s, 0 fits done, no backup" in capsys.readouterr().out


def test_a_run_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match="run ended with 3; see"):
        killed_recipe.survive(
            [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "run", iter(())
        )


def test_runs_that_are_too_short_to_be_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(killed_recipe, "survive", lambda *_: 0)
    monkeypatch.setattr(killed_recipe, "differences", lambda *_: [])
    with pytest.raises(RuntimeError, match="The runs end before 10 s; kill them earlier"):
        killed_recipe.check(tmp_path, [], kills=2, between=(10.0, 60.0))


@pytest.mark.skipif("KATTN_KILLS" not in os.environ, reason="takes minutes: KATTN_KILLS=10")
def test_kills_change_nothing(tmp_path):
    kills = int(os.environ["KATTN_KILLS"])
    found = killed_recipe.check(tmp_path, FLAGS, kills=kills, between=(10.0, 60.0))
    assert found == {run: [] for run in found}
