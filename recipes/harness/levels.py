"""Results by how hard a task is, and by distance: tables and figures of a report."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from recipes.harness import figures, report
from recipes.harness.run_folder import RunFolder
from recipes.harness.statistics import with_spread

PREFIX = "accuracy_"  # of the name of a result, behind which the level stands
MEASURED = "test accuracy, %"


def percentages(results: report.Results) -> dict[str, dict[float, list[float]]]:
    """Accuracies in percent: by kind of model, by level, one for each seed."""
    return {
        kind: {
            int(name.removeprefix(PREFIX)): [100 * run["test"][name] for run in runs]
            for name in runs[0]["test"]
            if name.startswith(PREFIX)
        }
        for kind, runs in results.items()
    }


def table(
    unit: str,
    titles: Mapping[str, str],
    found: Mapping[str, Mapping[float, Sequence[float]]],
    known: Mapping[str, Mapping[int, float]],
) -> str:
    """A row for each level, a column for each kind.

    Args:
        unit: What a level counts.
        titles: Titles of the kinds by name.
        found: Results by kind, then by level, one for each seed.
        known: Results of methods that are not trained, by title, then by level. They come first.
    """
    levels = list(next(iter(found.values())))
    header = [unit[0].upper() + unit[1:], *known, *(titles[kind] for kind in found)]
    rows = [
        [
            level,
            *(f"{each[int(level)]:.2f}" for each in known.values()),
            *(with_spread(each[level], 2) for each in found.values()),
        ]
        for level in levels
    ]
    return report.table(header, rows)


def section(
    folder: RunFolder,
    unit: str,
    titles: Mapping[str, str],
    found: Mapping[str, Mapping[float, Sequence[float]]],
    known: Mapping[str, Mapping[int, float]],
) -> str:
    """The table of accuracies, and of more than one level the figure `levels.png`, too.

    Args:
        folder: Folder of the run.
        unit: What a level counts.
        titles: Titles of the kinds by name.
        found: Accuracies in percent by kind, then by level, one for each seed.
        known: Accuracies of methods that are not trained, by title, then by level.
    """
    text = f"Test accuracy in %.\n\n{table(unit, titles, found, known)}"
    if max(map(len, found.values())) == 1:
        return text
    lines = {titles[kind]: each for kind, each in found.items()}
    return f"{text}\n\n{figure(folder, 'levels.png', f'Accuracy by {unit}', unit, lines)}"


def figure(
    folder: RunFolder,
    name: str,
    title: str,
    x: str,
    lines: Mapping[str, Mapping[float, Sequence[float]]],
) -> str:
    """Draw a figure of accuracies; returns the Markdown that shows it.

    Args:
        folder: Folder of the run.
        name: Name of the file, which ends with ".png".
        title: What the figure shows, for those who cannot see it.
        x: What the numbers count.
        lines: For each line, for each number, the accuracies in percent of all runs.
    """
    return folder.add_figure(name, title, functools.partial(figures.lines, lines, x, MEASURED))


def turned(
    found: Mapping[float, Mapping[float, Sequence[float]]], unit: str
) -> dict[str, dict[float, Sequence[float]]]:
    """Accuracies by number, then by level, as lines of a figure: by level, then by number."""
    names = list(next(iter(found.values())))
    return {f"{level} {unit}": {x: each[level] for x, each in found.items()} for level in names}


def distances_section(
    folder: RunFolder, title: str, about: str, values: Mapping[str, np.ndarray]
) -> str:
    """A text, the table of some numbers by distance, and the figure of all, `reach.png`.

    Args:
        folder: Folder of the run.
        title: What the figure shows, for those who cannot see it.
        about: The text.
        values: Norms at distance 0, 1 ... by the title of their line.
    """
    lines: dict[str, dict[float, list[float]]]
    lines = {name: {k: [norm] for k, norm in enumerate(norms)} for name, norms in values.items()}
    draw = functools.partial(figures.lines, lines, "distance k", "norm")
    return f"{about}\n\n{distances_table(values)}\n\n{folder.add_figure('reach.png', title, draw)}"


def distances_table(values: Mapping[str, np.ndarray]) -> str:
    """A row for each line of numbers by distance: at 1, at a quarter, at a half, and at the end."""
    end = min(map(len, values.values())) - 1
    chosen = sorted({min(1, end), end // 4, end // 2, end})
    rows = [[title, *(f"{each[k]:.1e}" for k in chosen)] for title, each in values.items()]
    return report.table(["Distance", *map(str, chosen)], rows)
