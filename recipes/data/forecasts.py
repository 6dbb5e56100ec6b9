"""Forecasts without a neural network, which every model has to beat."""

import numpy as np

from recipes.data.series import Series

STRENGTHS = (1e-2, 1.0, 1e2, 1e4)  # of the ridge regression, to choose from


def repeat_last(series: Series, starts: np.ndarray, horizon: int) -> np.ndarray:
    """The last value, repeated: `(count, horizon, channels)`."""
    return np.repeat(series.values[starts - 1][:, None], horizon, axis=1)


def seasonal_mean(series: Series, starts: np.ndarray, horizon: int, seasons: int) -> np.ndarray:
    """The mean of the values at the same time of the last `seasons` days or years.

    Raises:
        ValueError: If so many seasons do not lie before the first forecast.
    """
    if starts[0] < seasons * series.period:
        raise ValueError(
            "`seasons` must lie before the first forecast; "
            f"received: seasons={seasons}, period={series.period}, rows before={starts[0]}"
        )
    places = starts[:, None] + np.arange(horizon) % series.period
    total = sum(series.values[places - series.period * ago] for ago in range(1, seasons + 1))
    return np.asarray(total) / seasons


def linear(series: Series, lookback: int, horizon: int) -> np.ndarray:
    """The forecasts of the rows to test by a linear map, which all channels share.

    It is the NLinear of Zeng et al. 2022 (https://arxiv.org/abs/2205.13504): the last value is
    taken off before and put back after. Its weights are not trained but solved for, by ridge
    regression, whose strength is chosen on the rows to validate.
    """
    gram, targets = _products(*series.windows("train", lookback, horizon))
    maps = [np.linalg.solve(gram + strength * np.eye(lookback), targets) for strength in STRENGTHS]
    x, y = series.windows("validate", lookback, horizon)
    best = min(maps, key=lambda weights: errors(_apply(weights, x), y)["mse"])
    return _apply(best, series.windows("test", lookback, horizon)[0])


def _products(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X^T X and X^T Y, with each channel as examples, one after another to save memory."""
    gram, targets = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1]))
    for channel in range(x.shape[2]):
        last = x[:, -1:, channel]
        inputs = x[..., channel] - last
        gram += inputs.T @ inputs
        targets += inputs.T @ (y[..., channel] - last)
    return gram, targets


def _apply(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    last = x[:, -1:]
    return np.einsum("blm,lh->bhm", x - last, weights.astype("float32"), optimize=True) + last


def errors(forecast: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean squared and mean absolute error over all forecasts, steps and channels."""
    difference = forecast - truth
    return {"mse": float(np.mean(difference**2)), "mae": float(np.mean(np.abs(difference)))}


def baselines(series: Series, lookback: int, horizon: int) -> dict[str, dict[str, float]]:
    """Errors of all these forecasts on the rows to test, by what they are."""
    starts = series.starts("test", lookback, horizon)
    _, truth = series.windows("test", lookback, horizon)
    found = {"repeat the last value": repeat_last(series, starts, horizon)}
    for seasons in series.profiles:
        title = f"mean of the last {seasons} {series.season}s at that time"
        found[title] = seasonal_mean(series, starts, horizon, seasons)
    found["linear (NLinear, ridge regression)"] = linear(series, lookback, horizon)
    return {title: errors(forecast, truth) for title, forecast in found.items()}
