"""Results by how hard a task is, and by distance: tables of a report."""

from collections.abc import Mapping, Sequence

import numpy as np

from recipes.harness import report
from recipes.harness.statistics import with_spread

PREFIX = "accuracy_"  # of the name of a result, behind which the level stands


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


def distances_table(values: Mapping[str, np.ndarray]) -> str:
    """A row for each line of numbers by distance: at 1, at a quarter, at a half, and at the end."""
    end = min(map(len, values.values())) - 1
    chosen = sorted({min(1, end), end // 4, end // 2, end})
    rows = [[title, *(f"{each[k]:.1e}" for k in chosen)] for title, each in values.items()]
    return report.table(["Distance", *map(str, chosen)], rows)
