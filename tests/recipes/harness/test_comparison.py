"""Comparisons of a few kinds of model: budgets, references, and several of them in one report."""

import dataclasses
import json
from dataclasses import dataclass

import keras
import numpy as np
import pytest

from kattn.data import EpochShuffled
from recipes import harness

pytestmark = pytest.mark.usefixtures("steps_are_not_timed")


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Of the comparisons here."""

    epochs: int = 2
    batch_size: int = 5
    seeds: int = 1


def comparison(**options):
    """Linear maps of one and of two layers, of 20 points."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)).astype("float32")
    y = x.sum(-1, keepdims=True)

    def build(kind, seed):
        keras.utils.set_random_seed(seed)
        names = ("first", "second")[: 1 if kind == "one" else 2]
        layers = [keras.layers.Dense(1, name=name) for name in names]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile(harness.adamw(0.1, 0.0), "mse")
        return model

    def evaluate(model):
        return {"loss": float(np.mean((harness.predict(model, x, 5) - y) ** 2))}

    given = {
        "title": "Layers",
        "about": "20 points",
        "titles": {"one": "One layer", "two": "Two layers"},
        "scores": (harness.Score("loss", "test loss"),),
        "build": build,
        "batches": lambda kind, seed: EpochShuffled((x, y), batch_size=5, seed=seed),
        "validate": evaluate,
        "test": evaluate,
        "tested": 20,
        "references": lambda: {"guessing": {"loss": 2.5}},
    }
    return harness.Comparison(**{**given, **options})


def test_references_and_rates(tmp_path, monkeypatch):
    """A model may have a rate of its own; the range test is that of one that has none."""
    from recipes.harness import comparison as module

    tested = []

    def find_rate(model, data, folder, *, callbacks):
        tested.append(len(model.layers))
        folder.write_json("lr_find.json", {"valley": 0.25})
        return 0.25

    monkeypatch.setattr(module, "find_rate", find_rate)
    folder, settings = harness.RunFolder(tmp_path), Settings(lr_find=True, schedule="constant")
    job = harness.compare(comparison(rates={"one": 1e-9}), settings)
    said = job.work(folder, keras.backend.backend())
    assert tested == [2]
    report = " ".join(folder.report.read_text().split())
    assert "Two layers trained with a peak of 0.25, which a range test" in report
    assert "Test loss, for comparison: guessing 2.5000." in said
    assert f"**{said}**" in report
    assert "| guessing | 2.5000 | | | | |" in report
    assert "Highest learning rates: One layer 1e-09, Two layers 0.25." in report
    rates = {
        kind: harness.read_results(folder, [kind], 1)[kind][0]["epochs"][-1]["learning_rate"]
        for kind in ("one", "two")
    }
    assert rates == pytest.approx({"one": 1e-9, "two": 0.25})
    with pytest.raises(ValueError, match=r"`lr_find` must not be given .*rates=.'one': 1.0, 'two'"):
        harness.compare(comparison(rates={"one": 1.0, "two": 1.0}), settings)


class BrokenError(Exception):
    pass


def breaks(*arguments, **options):
    raise BrokenError("a fault")


def without_times(folder):
    return [line.rsplit("|", 3)[0] for line in folder.report.read_text().splitlines()]


def test_a_report_that_fails_costs_no_training(tmp_path, monkeypatch, capsys):
    """Results, weights and references are kept; `--resume` writes the report of them."""
    from recipes.harness import comparison as module
    from recipes.harness import comparison_report

    calls = []

    def references():
        calls.append("references")
        return {"guessing": {"loss": 2.5}}

    def prepare(settings):
        calls.append("prepare")
        return harness.compare(comparison(references=references), settings)

    settings = Settings(output=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(comparison_report, "measure_steps", breaks)
        with pytest.raises(BrokenError):
            harness.main("task", settings, prepare)
    assert "What was trained is kept in" in capsys.readouterr().err
    folder = harness.RunFolder(tmp_path / "run")
    assert not folder.report.exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", breaks)
        patch.setattr(module, "finish", breaks)
        assert harness.main("task", dataclasses.replace(settings, resume=True), prepare) == 0
    assert calls == ["prepare", "references", "prepare"]
    whole = dataclasses.replace(settings, output=tmp_path / "whole")
    assert harness.main("task", whole, prepare) == 0
    assert without_times(folder) == without_times(harness.RunFolder(tmp_path / "whole"))


def test_references_come_before_the_training(tmp_path, monkeypatch):
    """A fault in them, as in what they are computed with, costs no training."""
    from recipes.harness import comparison as module

    monkeypatch.setattr(module, "fit", None)
    job = harness.compare(comparison(references=breaks), Settings())
    with pytest.raises(BrokenError):
        job.work(harness.RunFolder(tmp_path), keras.backend.backend())


def test_a_fault_beside_the_results_costs_itself_only(tmp_path, monkeypatch, capsys):
    """That is one in a figure, or in the sections that the recipe adds."""
    from recipes.harness import comparison_report

    monkeypatch.setattr(comparison_report, "curves", breaks)
    folder = harness.RunFolder(tmp_path)
    job = harness.compare(comparison(sections=breaks), Settings(epochs=1))
    said = job.work(folder, keras.backend.backend())
    text = folder.report.read_text()
    assert f"**{said}**" in text
    reason = "as making it failed: BrokenError: a fault."
    assert f"**curves.png is missing**, {reason}" in text
    beside = "What the recipe has to say beside"
    assert f"## Further sections\n\n**{beside} is missing**, {reason}" in text
    assert "| guessing | 2.5000 |" in text
    assert "## Settings" in text
    error = capsys.readouterr().err
    assert error.count("warning: ") == 2
    assert not (tmp_path / "curves.png").exists()


def test_equal_minutes(tmp_path, monkeypatch):
    """Epochs follow from the time of a step, which is measured once."""
    from recipes.harness import comparison as module

    measured = []

    def measure(models, batches):
        measured.append({kind: len(batch[0]) for kind, batch in batches.items()})
        return {"one": 3.0, "two": 6.0}

    monkeypatch.setattr(module, "measure_steps", measure)
    folder, settings = harness.RunFolder(tmp_path), Settings(minutes=0.8)
    job = harness.compare(comparison(), settings)
    assert job.about == "20 points, 1 seed(s) x 0.8 min"
    job.work(folder, keras.backend.backend())
    assert measured == [{"one": 5, "two": 5}]
    results = harness.read_results(folder, ["one", "two"], 1)
    assert {kind: len(runs[0]["epochs"]) for kind, runs in results.items()} == {"one": 4, "two": 2}
    assert folder.read_json("epochs.json") == {"one": 4, "two": 2}
    assert "for as many epochs as last 0.8 min" in " ".join(folder.report.read_text().split())
    (tmp_path / "history/two-seed0.json").unlink()  # as if it had been stopped there
    job.work(folder, keras.backend.backend())
    assert len(measured) == 1
    assert len(harness.read_results(folder, ["two"], 1)["two"][0]["epochs"]) == 2


def test_some_of_the_models(tmp_path):
    """`--models` trains what it names, alone or in each of several comparisons."""
    backend, settings = keras.backend.backend(), Settings(epochs=1, models=("two",))
    harness.compare(comparison(), settings).work(harness.RunFolder(tmp_path), backend)
    assert [path.stem for path in (tmp_path / "history").iterdir()] == ["two-seed0"]
    folder = harness.RunFolder(tmp_path / "each")
    folder.path.mkdir()
    harness.compare_each("All", {"part": comparison()}, settings).work(folder, backend)
    assert [path.stem for path in folder.path.glob("part/history/*")] == ["two-seed0"]
    assert "One layer" not in folder.report.read_text()


@pytest.mark.parametrize(
    "compare", [harness.compare, lambda c, s: harness.compare_each("", {"": c}, s)]
)
def test_models_that_are_none(compare):
    with pytest.raises(ValueError, match=r"`models` must name some of one, two; .*'three'"):
        compare(comparison(), Settings(models=("two", "three")))


@pytest.mark.parametrize("minutes", [0, -1.0, float("inf"), float("nan")])
def test_minutes_that_are_none(minutes):
    with pytest.raises(
        ValueError, match="`minutes` must be a finite number above 0; received: minutes="
    ):
        Settings(minutes=minutes).check()


def test_several_comparisons_in_one_report(tmp_path):
    folder, backend = harness.RunFolder(tmp_path), keras.backend.backend()
    titles = {"one": "One layer"}
    parts = {
        "first": comparison(titles=titles),
        "second": comparison(titles=titles, references=dict),
    }
    job = harness.compare_each("All layers", parts, Settings())
    assert job.about == "20 points, first, second, 1 seed(s) x 2 epochs"
    said = job.work(folder, backend)
    report = folder.report.read_text()
    loss = json.loads((tmp_path / "second/history/one-seed0.json").read_text())["test"]["loss"]
    told = f"Test loss: One layer {loss:.4f}."
    guessed = "Test loss, for comparison: guessing 2.5000."
    assert said == f"first: {told} {guessed}\n\nsecond: {told}"
    assert "|  | first: test loss | second: test loss |" in report
    assert "| guessing | 2.5000 |  |" in report
    assert f"| One layer | {loss:.4f} | {loss:.4f} |" in report
    assert "[second/report.md](second/report.md)" in report

    before = (tmp_path / "first/report.md").stat().st_mtime_ns
    (tmp_path / "second/report.md").unlink()
    assert job.work(folder, backend) == said  # the first one is not done again
    assert (tmp_path / "first/report.md").stat().st_mtime_ns == before
    assert (tmp_path / "second/report.md").exists()
