"""Forecasts without training: by hand, and against published errors."""

import numpy as np
import pytest

from recipes.data import forecasts, series
from tests.recipes.real_data import real_data


def of(values, period=4):
    values = np.asarray(values, "float32")
    return series.Series("x", values, (60, 80, 100), period, (2, 3), "day")


def test_repeat_and_seasonal_means(rng):
    data = of(rng.normal(size=(100, 2)))
    starts = np.array([40, 43])
    x = data.values
    repeated = forecasts.repeat_last(data, starts, 3)
    means = forecasts.seasonal_mean(data, starts, 6, seasons=3)
    assert (repeated.shape, means.shape) == ((2, 3, 2), (2, 6, 2))
    for row, start in enumerate(starts):
        np.testing.assert_array_equal(repeated[row], [x[start - 1]] * 3)
        for step in range(6):
            place = start + step % 4  # at the same time of the days before the forecast
            wanted = (x[place - 4] + x[place - 8] + x[place - 12]) / 3
            np.testing.assert_allclose(means[row, step], wanted, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"`seasons` must lie .*seasons=11, period=4, rows before=40"
    ):
        forecasts.seasonal_mean(data, starts, 6, seasons=11)


def test_the_linear_map_finds_a_linear_law(rng):
    """Sines of one period follow a linear recurrence, whatever their level, height and phase."""
    steps = np.arange(100)
    values = np.stack([5 + np.sin(0.7 * steps + 1), 3 * np.cos(0.7 * steps) - 9], axis=-1)
    data = of(values)
    errors = forecasts.errors(forecasts.linear(data, 10, 4), data.windows("test", 10, 4)[1])
    assert errors["mse"] < 1e-3
    noise = of(rng.normal(size=(100, 2)))
    errors = forecasts.errors(forecasts.linear(noise, 10, 4), noise.windows("test", 10, 4)[1])
    assert errors["mse"] < 2.2  # which repeating the last value has: the map is regularised


def test_errors():
    found = forecasts.errors(np.array([[1.0, 2.0]]), np.array([[2.0, 5.0]]))
    assert found == {"mse": 5.0, "mae": 2.0}


PUBLISHED = {  # full test set: MSE and MAE
    96: {"repeat": (1.294, 0.713), "7 days": (0.400, 0.400), "21 days": (0.390, 0.407)},
    336: {"repeat": (1.330, 0.746), "7 days": (0.469, 0.431), "21 days": (0.399, 0.418)},
}
NLINEAR = {96: 0.374, 336: 0.429}  # trained by Zeng et al., from 336 steps


@pytest.mark.parametrize("horizon", PUBLISHED)
def test_etth1(horizon):
    data = series.load(real_data("ett/ETTh1.csv"))
    found = forecasts.baselines(data, 336, horizon)
    for words, errors in PUBLISHED[horizon].items():
        (title,) = [title for title in found if words in title]
        assert (found[title]["mse"], found[title]["mae"]) == pytest.approx(errors, abs=6e-4)
    (title,) = [title for title in found if "linear" in title]
    assert found[title]["mse"] == pytest.approx(NLINEAR[horizon], abs=0.012)
