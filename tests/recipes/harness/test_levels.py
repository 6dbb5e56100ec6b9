"""Tables of accuracies by level, and of norms by distance."""

import numpy as np
import pytest

from recipes.harness import figures, levels
from recipes.harness.run_folder import RunFolder

RESULTS = {
    "a": [{"test": {"loss": 1.0, "accuracy_2": 0.5, "accuracy_16": 0.25}}],
    "b": [
        {"test": {"loss": 1.0, "accuracy_2": 0.75, "accuracy_16": 1.0}},
        {"test": {"loss": 1.0, "accuracy_2": 0.25, "accuracy_16": 1.0}},
    ],
}


def test_table():
    found = levels.percentages(RESULTS)
    assert found == {"a": {2: [50.0], 16: [25.0]}, "b": {2: [75.0, 25.0], 16: [100.0, 100.0]}}
    text = levels.table("pairs", {"a": "A", "b": "B"}, found, {"guess": {2: 50.0, 16: 6.25}})
    assert text.splitlines() == [
        "| Pairs | guess | A | B |",
        "| --- | ---: | ---: | ---: |",
        "| 2 | 50.00 | 50.00 | 50.00 ± 35.36 |",
        "| 16 | 6.25 | 25.00 | 100.00 ± 0.00 |",
    ]


def test_distances():
    text = levels.distances_table({"x": np.arange(9) / 10, "y": np.arange(12.0)})
    assert text.splitlines() == [
        "| Distance | 1 | 2 | 4 | 8 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| x | 1.0e-01 | 2.0e-01 | 4.0e-01 | 8.0e-01 |",
        "| y | 1.0e+00 | 2.0e+00 | 4.0e+00 | 8.0e+00 |",
    ]
    assert "| Distance | 0 |" in levels.distances_table({"x": np.ones(1)})


@pytest.fixture
def drawn(monkeypatch):
    """What the figures show."""
    found, draw = [], figures.lines

    def lines(*given):
        found.append(given)
        return draw(*given)

    monkeypatch.setattr(figures, "lines", lines)
    return found


def test_section(tmp_path, drawn):
    """A figure of one level would be points."""
    folder, titles = RunFolder(tmp_path), {"a": "A", "b": "B"}
    found = levels.percentages(RESULTS)
    text = levels.section(folder, "pairs", titles, found, {})
    assert text.startswith("Test accuracy in %.\n\n| Pairs | A | B |\n")
    assert "![Accuracy by pairs](levels.png)" in text
    assert drawn == [({"A": found["a"], "B": found["b"]}, "pairs", "test accuracy, %")]
    (tmp_path / "levels.png").unlink()
    easy = {kind: {2: each[2]} for kind, each in found.items()}
    assert "png" not in levels.section(folder, "pairs", titles, easy, {})
    assert not (tmp_path / "levels.png").exists()


def test_turned():
    found = {8: {2: [1.0], 4: [2.0]}, 16: {2: [3.0], 4: [4.0]}}
    assert levels.turned(found, "pairs") == {
        "2 pairs": {8: [1.0], 16: [3.0]},
        "4 pairs": {8: [2.0], 16: [4.0]},
    }


def test_distances_section(tmp_path, drawn):
    folder = RunFolder(tmp_path)
    text = levels.distances_section(folder, "Reach", "About.", {"x": np.array([3.0, 0.5])})
    assert text.startswith("About.\n\n| Distance | 0 | 1 |\n")
    assert text.endswith("![Reach](reach.png)")
    assert drawn == [({"x": {0: [3.0], 1: [0.5]}}, "distance k", "norm")]
