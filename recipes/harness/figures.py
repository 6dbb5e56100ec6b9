"""Figures that many reports need: learning curves, final results, grids of small panels."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

from recipes.harness.names import LINES, printable
from recipes.harness.statistics import PairedDifference

COLOURS = GREY, RED, BLUE, YELLOW = ("#7f7f7f", "#d1495b", "#00798c", "#edae49")  # baseline: grey
MARKED = 12  # points of a line that are drawn as such
MORE_COLOURS = ("#8f5d9d", "#6a994e", "#f3722c", "#7f5539")


def curves(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    panels: Mapping[str, str],
    finals: Mapping[str, Sequence[float]],
    finals_title: str,
) -> Figure:
    """Learning curves, one panel per quantity and one colour per model; then the final results.

    Args:
        histories: For each model, for each of its runs, one dict of values for each epoch. They
            are shown as mean and range over runs.
        panels: Title of each panel by the name of the value that it shows. Losses get a
            logarithmic axis.
        finals: For each model, the final result of each run. Results of one seed are joined.
        finals_title: Title of the panel with the final results.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.6 * (len(panels) + 1), 3.4), layout="constrained")
        *axes, last = figure.subplots(1, len(panels) + 1)
    for panel, (key, title) in zip(axes, panels.items(), strict=True):
        for colour, (label, runs) in coloured(histories):
            _band(panel, np.array([[epoch[key] for epoch in run] for run in runs]), colour, label)
        if key.endswith("loss"):
            panel.set_yscale("log")
        else:  # the first epochs may leave the panel: the rest would be a flat line
            every = [epoch[key] for runs in histories.values() for run in runs for epoch in run]
            low, high = float(np.quantile(every, 0.15)), max(every)
            panel.set_ylim(low - 0.2 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
    told = axes[0].get_legend_handles_labels()
    figure.legend(*told, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    last.plot(np.array(list(finals.values())), color="black", linewidth=0.8, alpha=0.4)
    for x, (colour, (_, values)) in enumerate(coloured(finals)):
        last.plot([x] * len(values), values, "o", color=colour, alpha=0.7)
        last.plot([x - 0.15, x + 0.15], [np.mean(values)] * 2, color=colour, linewidth=2.5)
    labels = [_in_lines(label) for label in finals]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    if longest * len(finals) > 36:  # characters that fit side by side
        labels = [""] * len(labels)  # the legend says which colour is which
    last.set_xticks(range(len(finals)), labels)
    last.set_xlim(-0.5, len(finals) - 0.5)
    last.set_title(textwrap.fill(finals_title, 36), fontsize=10)
    last.grid(axis="y", alpha=0.25)
    return figure


def take_names_as_they_are(figure: Figure) -> None:
    """Make a figure draw its texts as they are, as names from data may look like formulas.

    Numbers along axes stay as Matplotlib writes them, powers of ten as formulas.
    """
    numbers = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), (LogFormatter, ScalarFormatter)):
                ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
                numbers |= {id(text) for tick in ticks for text in (tick.label1, tick.label2)}
                numbers.add(id(axis.get_offset_text()))
    for text in figure.findobj(Text):
        if id(text) not in numbers:
            text.set(parse_math=False, usetex=False, text=printable(text.get_text(), keep=LINES))


def _in_lines(label: str) -> str:
    if " + " in label:
        return label.replace(" + ", "\n+ ")
    return textwrap.fill(label, 12, break_long_words=False)


def coloured(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """A colour for each item, the first ones again where there are many."""
    return zip(itertools.cycle((*COLOURS, *MORE_COLOURS)), values.items(), strict=False)


def _band(axes: Any, values: np.ndarray, colour: str, label: str) -> None:
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(0), color=colour, label=label, linewidth=1.8)
    axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def lines(
    values: Mapping[str, Mapping[float, Sequence[float]]], x_title: str, y_title: str
) -> Figure:
    """Lines over numbers: means over runs, and bands from the lowest to the highest of them.

    Args:
        values: For each line, for each number, the results of all runs. Percentages get an axis
            from 0 to 100, as their title ends with "%"; other results a logarithmic one.
        x_title: Title of the axis of the numbers.
        y_title: Title of the axis of the results.
    """
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, (label, by_number) in coloured(values):
        numbers, results = list(by_number), np.array(list(by_number.values()))  # (numbers, runs)
        mark = "o" if len(numbers) <= MARKED else None
        axes.plot(numbers, results.mean(1), color=colour, label=label, linewidth=1.8, marker=mark)
        axes.fill_between(numbers, results.min(1), results.max(1), color=colour, alpha=0.2, lw=0)
    if y_title.endswith("%"):
        axes.set_ylim(0, 103)
    else:
        axes.set_yscale("log")
    if all(len(each) <= MARKED for each in values.values()):
        axes.set_xticks(sorted({number for each in values.values() for number in each}))
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure of small panels that share their axes; width and height of a panel in inches."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in axes[count:]:
        panel.set_axis_off()
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:count])


def results_figure(
    values: Mapping[str, Sequence[float]],
    titles: Mapping[str, str],
    baseline: str,
    others: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    linear: float | None = None,
) -> Figure:
    """Results by seed, their differences to the baseline, and other numbers; a row each variant.

    Args:
        values: Results by name of the variant, one for each seed.
        titles: Titles of the variants by name.
        baseline: Name of the variant that the others are compared with.
        others: Further panels: by title, numbers by name of the variant.
        title: Title of the panel with the results.
        linear: The axis of differences is linear up to this value and logarithmic beyond. None
            makes all of it linear.
    """
    count = 2 + len(others)
    height = 0.8 + 0.26 * len(values)
    figure = Figure(figsize=(2.2 + 2.7 * count, max(height, 2.2)), layout="constrained")
    first, second, *rest = figure.subplots(1, count, sharey=True)
    _dots(first, values)
    first.set_title(title, fontsize=9)
    _intervals(second, values, baseline)
    if linear is None:
        second.locator_params(axis="x", nbins=5)
    else:
        second.set_xscale("symlog", linthresh=linear)
    second.set_title(f"difference to {titles[baseline]}, 95 %", fontsize=9)
    for panel, (name, numbers) in zip(rest, others.items(), strict=True):
        _dots(panel, numbers)
        panel.set_title(name, fontsize=9)
    first.set_yticks(range(len(values)), [titles[kind] for kind in values], fontsize=8)
    first.invert_yaxis()
    for panel in (first, second, *rest):
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _dots(axes: Any, values: Mapping[str, Sequence[float]]) -> None:
    for row, each in enumerate(values.values()):
        axes.plot(each, [row] * len(each), "o", color=BLUE, alpha=0.5, markersize=4)
        if len(each):
            axes.plot([np.mean(each)] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.5)


def _intervals(axes: Any, values: Mapping[str, Sequence[float]], baseline: str) -> None:
    for row, (kind, each) in enumerate(values.items()):
        if kind == baseline:
            continue
        difference = PairedDifference.between(each, values[baseline])
        if difference.interval is not None:
            colour = RED if difference.is_clear else GREY
            axes.plot(difference.interval, [row, row], color=colour, linewidth=1.5)
        axes.plot(difference.mean, row, "o", color="black", markersize=4)
    axes.axvline(0, color="black", linewidth=0.8)
