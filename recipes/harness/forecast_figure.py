"""Forecasts as a figure, for reports."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from recipes.harness.figures import coloured, panels
from recipes.harness.fitting import predict
from recipes.harness.run_folder import RunFolder

DRAWN = (
    "gru",
    "sa-segments",
    "deviations",
)  # kinds of models whose forecasts are drawn, if they are trained


def section(
    windows: tuple[np.ndarray, np.ndarray],
    titles: Mapping[str, str],
    models: Mapping[str, Any],
    folder: RunFolder,
) -> dict[str, str]:
    """Six windows of the last series: the end of what was read, what came, and the forecasts."""
    chosen = np.linspace(0, len(windows[0]) - 1, 6).astype(int)
    x, y = (part[chosen] for part in windows)
    drawn = [kind for kind in models if kind in DRAWN] or list(models)[: len(DRAWN)]
    found = {titles[kind]: predict(models[kind], x, len(x)) for kind in drawn}
    draw = functools.partial(forecasts_figure, x, y, found)
    figure = folder.add_figure("forecasts.png", "Forecasts", draw)
    return {"Forecasts": f"Black: the last series. Models of seed 0.\n\n{figure}"}


def forecasts_figure(x: np.ndarray, y: np.ndarray, found: Mapping[str, np.ndarray]) -> Figure:
    """The last series of windows, and what the models forecast, a panel each."""
    figure, each = panels(6, 3, 3.6, 2.0)
    ahead = np.arange(y.shape[1])
    read = x[:, -2 * len(ahead) :]
    steps = np.arange(-read.shape[1], len(ahead))
    for i, panel in enumerate(each):
        panel.plot(steps, np.concatenate([read[i], y[i]])[:, -1], color="black", linewidth=0.6)
        for colour, (title, forecast) in coloured(found):
            panel.plot(ahead, forecast[i, :, -1], color=colour, label=title, linewidth=1.2)
    told = each[0].get_legend_handles_labels()
    figure.legend(*told, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("step", fontsize=8)
    return figure
