"""Figures show the numbers they are given."""

import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from recipes import harness


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


@pytest.mark.parametrize(("title", "scale"), [("accuracy, %", "linear"), ("norm", "log")])
def test_lines(tmp_path, title, scale):
    """Means over runs at each number, and bands from the lowest to the highest."""
    values = {"a": {2: [10.0, 30.0], 8: [50.0, 70.0]}, "b": {2: [1.0, 1.0], 8: [2.0, 2.0]}}
    figure = harness.lines(values, "pairs", title)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("pairs", title, scale)
    assert axes.get_xticks().tolist() == [2, 8]
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[2, 20], [8, 60]],
        [[2, 1], [8, 2]],
    ]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(2, 10), (2, 30), (8, 50), (8, 70)} <= {tuple(vertex) for vertex in band.tolist()}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    harness.RunFolder(tmp_path).write_figure("lines.png", figure)


def test_lines_over_many_numbers_have_no_marks():
    figure = harness.lines({"a": {k: [float(k + 1)] for k in range(40)}}, "distance", "norm")
    (line,) = figure.axes[0].lines
    assert line.get_marker() in (None, "None", "")
    assert len(figure.axes[0].get_xticks()) < 20


def test_many_models_each_have_a_curve():
    histories = {f"model {i}": [[{"loss": float(i + 1)}]] for i in range(10)}
    finals = {name: [float(i)] for i, name in enumerate(histories)}
    figure = harness.curves(histories, {"loss": "training loss"}, finals, "final")
    curves, final = figure.axes
    assert [line.get_ydata()[0] for line in curves.lines] == [i + 1 for i in range(10)]
    assert len(final.get_xticklabels()) == 10
    colours = [line.get_color() for line in curves.lines]
    assert len(set(colours[:8])) == 8


@pytest.mark.parametrize("count", [2, 10])
def test_many_models_are_named_below_alone(count):
    """Beside each other below the last panel there is no room for their names."""
    names = [f"a model, number {i}" for i in range(count)]
    histories = {name: [[{"loss": 1.0}]] for name in names}
    figure = harness.curves(histories, {"loss": "loss"}, {name: [1.0] for name in names}, "x")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    ticks = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert [bool(tick) for tick in ticks] == [count == 2] * count


def figure_of(name, other):
    """Names as title, as legend and along an axis, beside numbers as powers of ten."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [1e-3, 1e3], label=name)
    axes.set_yscale("log")
    axes.set_title(f"{name}\n{other}")
    axes.set_xticks([0, 1], [name, "$y$"])
    axes.legend()
    figure.suptitle(name)
    return figure


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_names_are_drawn_as_they_are(tmp_path):
    """Pixel for pixel what Matplotlib draws where the names are escaped."""
    folder = harness.RunFolder(tmp_path)
    folder.write_figure("names.png", figure_of(r"$\frac$ a_b^c", os.fsdecode(b"\xe9\x1b$x$")))
    escaped = figure_of(r"\$\frac\$ a_b^c", r"\xe9\x1b\$x\$")
    escaped.axes[0].set_xticks([0, 1], [r"\$\frac\$ a_b^c", r"\$y\$"])
    escaped.savefig(tmp_path / "escaped.png", dpi=150)
    np.testing.assert_array_equal(pixels(tmp_path / "names.png"), pixels(tmp_path / "escaped.png"))
