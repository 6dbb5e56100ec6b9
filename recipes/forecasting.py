"""Forecast time series with a Transformer over patches, and without any training.

Task    Forecast the next steps of all series from the last ones: by PatchTST, and by a PatchTST
        that forecasts the deviations from the mean day (or year) of the steps that it reads. The
        errors of four forecasts that need no training are printed before: the last value; means at
        the same time of the day over the last seasons; a linear map.
Data    The CO2 in the air of Mauna Loa, week by week (default; in statsmodels, no network), or
        --csv FILE. Files named ETTh1.csv and so on (https://github.com/zhouhaoyi/ETDataset) are
        split as in the literature, 12 + 4 + 4 months: rows 0 to 8,639, 11,519 and 14,399.
Score   Mean squared error over all windows to test (none is left out), steps and series, which are
        scaled by mean and deviation of the rows to train. The weights are those of the epoch that
        validated best.
Run     python -m recipes.forecasting
        python -m recipes.forecasting --csv ETTh1.csv --horizons 96 192 336 720
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from recipes import harness
from recipes.data import forecasts, series
from recipes.harness.figures import BLUE, GREY, RED

RECIPE = "forecasting"
TITLES = {"patchtst": "PatchTST", "deviations": "PatchTST + mean season"}
COLOURS = {"patchtst": RED, "deviations": BLUE}
SCORES = (harness.Score("mse", "test MSE"), harness.Score("mae", "test MAE"))


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train a PatchTST for each horizon, and compare it with forecasts without training."""

    csv: Path | None = None  # a date and numbers in each line; None: CO2 of Mauna Loa

    # What follows has other defaults for --csv, see `presets`.
    horizons: tuple[int, ...] = (26, 52)  # steps to forecast; a model for each
    lookback: int = 104  # steps that a model reads
    epochs: int = 30  # passes over the windows to train
    batch_size: int = 32  # windows in one training step
    learning_rate: float = 1e-3  # highest rate, reached after one epoch of warm-up; AdamW
    keep: Literal["last", "best"] = "best"  # weights to test; best: by the validation loss

    num_layers: int = 3  # blocks of the Transformer
    num_heads: int = 4  # heads of each attention layer
    width: int = 16  # channels of the Transformer
    hidden_dim: int = 128  # hidden channels of its feed-forward networks
    patch_length: int = 16  # steps of a patch
    stride: int = 8  # steps from one patch to the next
    dropout: float = 0.3  # fraction dropped behind the projection and each part of a block

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(1, lookback=self.lookback)
        if not self.horizons:
            raise arguments.error("`horizons` must name at least one", horizons=self.horizons)
        for horizon in self.horizons:
            arguments.check_integers(1, horizons=horizon)


def presets(given: Settings) -> Settings:
    """The defaults for the data that the flags name."""
    if given.csv is None:
        return Settings()
    options: dict[str, Any] = {"horizons": (96, 336), "lookback": 504, "epochs": 6}
    options |= {"batch_size": 128, "num_layers": 2, "hidden_dim": 64}
    return Settings(csv=given.csv, patch_length=24, stride=24, **options)


def build(data: series.Series, settings: Settings, horizon: int, kind: str, seed: int) -> Any:
    """A compiled PatchTST of the series, or of their deviations from the mean season."""
    import keras
    from keras import ops

    from kattn.models import TimeSeriesTransformer

    keras.utils.set_random_seed(seed)
    names = ("num_layers", "num_heads", "width", "hidden_dim", "patch_length", "stride", "dropout")
    options = {name: getattr(settings, name) for name in names}
    steps, channels = settings.lookback, data.values.shape[1]
    # With a name of its own, the report is the same after --resume.
    network = TimeSeriesTransformer(horizon, input_length=steps, name="network", **options)
    x = keras.Input((steps, channels))
    if kind == "patchtst":
        model = keras.Model(x, network(x))
    else:
        seasons = steps // data.period
        last = ops.reshape(x[:, -seasons * data.period :], (-1, seasons, data.period, channels))
        mean = ops.mean(last, axis=1)  # which begins with the time of the first forecast step
        read = ops.tile(mean, (1, seasons + 1, 1))[:, -steps:]
        ahead = ops.tile(mean, (1, -(-horizon // data.period), 1))[:, :horizon]
        model = keras.Model(x, network(x - read) + ahead)
    model.compile(harness.adamw(settings.learning_rate, settings.weight_decay), "mse")
    return model


def evaluate(windows: tuple[np.ndarray, np.ndarray], model: Any) -> dict[str, float]:
    """Errors over windows."""
    x, y = windows
    return forecasts.errors(harness.predict(model, x, 64), y)


def sections(
    windows: tuple[np.ndarray, np.ndarray], models: Mapping[str, Any], folder: harness.RunFolder
) -> dict[str, str]:
    """Six windows of the last series: the end of what was read, what came, and the forecasts."""
    chosen = np.linspace(0, len(windows[0]) - 1, 6).astype(int)
    x, y = (part[chosen] for part in windows)
    found = {kind: harness.predict(model, x, len(x)) for kind, model in models.items()}
    figure = folder.add_figure(
        "forecasts.png", "Forecasts", functools.partial(forecasts_figure, x, y, found)
    )
    text = "Grey: the last series; red: PatchTST; blue: PatchTST + mean season. Models of seed 0."
    return {"Forecasts": f"{text}\n\n{figure}"}


def forecasts_figure(x: np.ndarray, y: np.ndarray, found: Mapping[str, np.ndarray]) -> Figure:
    """The last series of windows, and what the models forecast, a panel each."""
    figure, panels = harness.panels(6, 3, 3.6, 2.0)
    ahead = np.arange(y.shape[1])
    read = x[:, -2 * len(ahead) :]
    steps = np.arange(-read.shape[1], len(ahead))
    for i, panel in enumerate(panels):
        panel.plot(steps, np.concatenate([read[i], y[i]])[:, -1], color=GREY, linewidth=0.8)
        for kind, forecast in found.items():
            panel.plot(ahead, forecast[i, :, -1], color=COLOURS[kind])
    figure.supxlabel("step", fontsize=8)
    return figure


def comparison(
    data: series.Series,
    settings: Settings,
    horizon: int,
    references: Mapping[str, Mapping[str, float]],
) -> harness.Comparison:
    """The model of one horizon and the forecasts without training."""
    from kattn.data import EpochShuffled

    lookback = settings.lookback
    fit, held, test = (
        data.windows(part, lookback, horizon) for part in ("train", "validate", "test")
    )
    size = settings.batch_size
    return harness.Comparison(
        title=f"Forecasts of {data.name}, {horizon} steps from {lookback}",
        about=data.about,
        titles=TITLES,
        scores=SCORES,
        build=functools.partial(build, data, settings, horizon),
        batches=lambda kind, seed: EpochShuffled(fit, batch_size=size, seed=seed),
        validate=lambda model: {"loss": evaluate(held, model)["mse"]},
        test=functools.partial(evaluate, test),
        tested=len(test[0]),
        references=lambda: references,
        notes=(
            f"{data.about}, to train, validate and test; {len(fit[0]):,}, {len(held[0]):,} and "
            f"{len(test[0]):,} windows. All windows to test count, the last batch included.",
            "The series are scaled by mean and deviation of the rows to train, and errors are "
            "measured so. PatchTST brings each window to mean 0 and variance 1 (RevIN, without "
            "learned gains). PatchTST + mean season reads the window without the mean "
            f"{data.season} of its {lookback // data.period} whole {data.season}s, to which it "
            "adds its forecast.",
            f"Linear: {lookback} steps, without their last value, times one matrix for all series.",
        ),
        sections=functools.partial(sections, test),
    )


def prepare(settings: Settings) -> harness.Job:
    """Read the series, forecast without training, and prepare the models of all horizons."""
    from kattn import arguments

    data, parts = series.load(settings.csv), {}
    data = dataclasses.replace(data, name=harness.in_markdown(data.name))
    if settings.lookback < data.period:
        raise arguments.error(
            f"`lookback` must be at least one {data.season} of the series",
            lookback=settings.lookback,
            rows=data.period,
        )
    for horizon in settings.horizons:
        references = forecasts.baselines(data, settings.lookback, horizon)
        rows = [[title, *map("{:.3f}".format, each.values())] for title, each in references.items()]
        print(
            harness.table([f"{horizon} steps, no training", "MSE", "MAE"], rows), "\n", flush=True
        )
        parts[f"horizon-{horizon}"] = comparison(data, settings, horizon, references)
        build(data, settings, horizon, "patchtst", 0)  # refuses bad sizes at once
    title = f"Forecasts of {data.name} from {settings.lookback} steps"
    return harness.compare_each(title, parts, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments, presets), prepare)


if __name__ == "__main__":
    sys.exit(main())
