"""Forecast time series: recurrent networks, with attention and without, and a PatchTST.

Task    Forecast the next steps of all series from the last ones. A GRU reads them step by step, or
        each by segments such as days; its outputs attend to each other (SA-RNN) or not; a PatchTST
        has attention only. "+ mean season" forecasts the deviations from the mean day (or year) of
        the steps that are read. The errors of four forecasts that need no training are printed
        before: the last value; means at the same time over the last seasons; a linear map.
Data    The CO2 in the air of Mauna Loa, week by week (default; in statsmodels, no network), or
        --csv FILE. Files named ETTh1.csv and so on (https://github.com/zhouhaoyi/ETDataset) are
        split as in the literature, 12 + 4 + 4 months: rows 0 to 8,639, 11,519 and 14,399.
Score   Mean squared error over all windows to test (none is left out), steps and series, which are
        scaled by mean and deviation of the rows to train. The weights are those of the epoch that
        validated best.
Cost    CO2 on JAX and two cores: six minutes for each of the --seeds.
Run     python -m recipes.forecasting
        python -m recipes.forecasting --csv ETTh1.csv --horizons 96 192 336 720
        python -m recipes.forecasting --csv ETTh1.csv --sweep-windows 24 168
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes import harness
from recipes.data import forecasts, series

RECIPE = "forecasting"
SCORES = (harness.Score("mse", "test MSE"), harness.Score("mae", "test MAE"))


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train networks for each horizon, and compare them with forecasts without training."""

    csv: Path | None = None  # a date and numbers in each line; None: CO2 of Mauna Loa
    sweep_windows: tuple[int, ...] = ()  # trains an SA-RNN that sees N single steps for each N

    # What follows has other defaults for --csv, see `presets`.
    horizons: tuple[int, ...] = (26, 52)  # steps to forecast; a model for each
    lookback: int = 104  # steps that a model reads
    epochs: int = 30  # passes over the windows to train
    batch_size: int = 32  # windows in one training step
    learning_rate: float = 1e-3  # highest rate, reached after one epoch of warm-up; AdamW
    keep: Literal["last", "best"] = "best"  # weights to test; best: by the validation loss
    num_heads: int = 4  # heads of each attention layer
    dropout: float = 0.3  # fraction dropped behind the GRU, or each part of a Transformer's block

    units: int = 64  # channels of the GRUs
    segment_length: int = 13  # steps of a segment

    num_layers: int = 3  # blocks of the Transformer
    width: int = 16  # channels of the Transformer
    hidden_dim: int = 128  # hidden channels of its feed-forward networks
    patch_length: int = 16  # steps of a patch
    stride: int = 8  # steps from one patch to the next

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(1, lookback=self.lookback)
        if not self.horizons:
            raise arguments.error("`horizons` must name at least one", horizons=self.horizons)
        for horizon in self.horizons:
            arguments.check_integers(1, horizons=horizon)
        for window in self.sweep_windows:
            arguments.check_integers(1, sweep_windows=window)


def presets(given: Settings) -> Settings:
    """The defaults for the data that the flags name."""
    if given.csv is None:
        return Settings()
    options: dict[str, Any] = {"horizons": (96, 336), "lookback": 504, "epochs": 6}
    options |= {"batch_size": 128, "num_layers": 2, "hidden_dim": 64}
    return Settings(csv=given.csv, patch_length=24, stride=24, segment_length=24, **options)


def kinds_of(settings: Settings) -> Mapping[str, Any]:
    """The kinds of models by name."""
    from recipes.harness.forecasters import kinds

    return kinds(settings.segment_length, settings.num_heads, settings.sweep_windows)


def build(data: series.Series, settings: Settings, horizon: int, kind: str, seed: int) -> Any:
    """A compiled model of one kind."""
    import keras

    from kattn.models import TimeSeriesTransformer
    from recipes.harness import forecasters

    keras.utils.set_random_seed(seed)
    shape, made = (settings.lookback, data.values.shape[1]), kinds_of(settings)[kind]
    if made.recurrent is None:
        names = ("num_layers", "num_heads", "width", "hidden_dim", "patch_length", "stride")
        options = {name: getattr(settings, name) for name in names}
        options |= {"dropout": settings.dropout, "name": forecasters.NETWORK}
        model = TimeSeriesTransformer(horizon, input_length=shape[0], **options)
    else:
        options = {"units": settings.units, "dropout": settings.dropout, **made.recurrent}
        model = forecasters.recurrent(shape, horizon, **options)
    if made.is_around_season:
        model = forecasters.around_mean_season(model, shape, horizon, data.period)
    model.compile(harness.adamw(settings.learning_rate, settings.weight_decay), "mse")
    return model


def evaluate(windows: tuple[np.ndarray, np.ndarray], model: Any) -> dict[str, float]:
    """Errors over windows."""
    x, y = windows
    return forecasts.errors(harness.predict(model, x, 64), y)


def comparison(
    data: series.Series,
    settings: Settings,
    horizon: int,
    references: Mapping[str, Mapping[str, float]],
) -> harness.Comparison:
    """The models of one horizon and the forecasts without training."""
    from kattn.data import EpochShuffled
    from recipes.harness.forecast_figure import section

    titles = {name: kind.title for name, kind in kinds_of(settings).items()}
    lookback, season = settings.lookback, data.season
    fit, held, test = (
        data.windows(part, lookback, horizon) for part in ("train", "validate", "test")
    )
    size = settings.batch_size
    return harness.Comparison(
        title=f"Forecasts of {data.name}, {horizon} steps from {lookback}",
        about=data.about,
        titles=titles,
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
            "measured so. All networks bring each window to mean 0 and variance 1 (RevIN, without "
            f"learned gains). Those with a mean season read the window without the mean {season} "
            f"of its {lookback // data.period} whole {season}s, to which they add their forecast.",
            f"All GRUs have {settings.units} channels, and forecast by their last output. One step "
            f"of those over segments is {settings.segment_length} steps of one series; of the "
            "others it is one step of all series. The outputs of an SA-RNN attend to each other.",
            f"Linear: {lookback} steps, without their last value, times one matrix for all series.",
        ),
        sections=functools.partial(section, test, titles),
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
        for kind in kinds_of(settings):  # so that bad sizes are refused at once
            if not settings.models or kind in settings.models:
                build(data, settings, horizon, kind, 0)
    title = f"Forecasts of {data.name} from {settings.lookback} steps"
    return harness.compare_each(title, parts, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments, presets), prepare)


if __name__ == "__main__":
    sys.exit(main())
