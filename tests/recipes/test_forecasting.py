"""The recipe from the command line, on a short series: result, resume and bad input."""

import json

import keras
import numpy as np
import pytest

from recipes import forecasting, harness
from recipes.data import forecasts, series

TINY = [
    *("--seeds", "1"),
    *("--epochs", "2"),
    *("--batch-size", "64"),
    *("--horizons", "30"),
    *("--lookback", "36"),
    *("--num-layers", "1"),
    *("--num-heads", "2"),
    *("--width", "4"),
    *("--hidden-dim", "8"),
    *("--patch-length", "8"),
    *("--stride", "4"),
]


@pytest.fixture
def csv(tmp_path):
    """Two noisy series with a day of 24 hours."""
    rng = np.random.default_rng(0)
    hours = np.arange(900)
    daily = np.sin(2 * np.pi * hours / 24)
    values = np.stack([daily, 30 - 5 * daily], axis=1) + 0.1 * rng.normal(size=(900, 2))
    times = np.datetime64("2020-01-01T00") + hours
    lines = [f"{time}:00:00,{a},{b}" for time, (a, b) in zip(times, values, strict=True)]
    path = tmp_path / "daily $x$.csv"
    path.write_text("date,a,b\n" + "\n".join(lines))
    return path


@pytest.mark.usefixtures("steps_are_not_timed")
def test_a_run_leaves_a_folder_with_everything(csv, tmp_path, capsys, write_again):
    run = tmp_path / "run"
    command = [*TINY, "--csv", str(csv), "--output", str(run)]
    assert forecasting.main(command) == 0
    out = capsys.readouterr().out
    data = series.load(csv)
    report = (run / "report.md").read_text()
    known = forecasts.baselines(data, 36, 30)
    for title, errors in known.items():
        assert f"| {title} | {errors['mse']:.3f} | {errors['mae']:.3f} |" in out
        assert f"{title} {errors['mse']:.4f}" in report
    part = run / "horizon-30"
    assert (part / "forecasts.png").is_file()
    results = {
        kind: json.loads((part / f"history/{kind}-seed0.json").read_text())
        for kind in ("patchtst", "deviations")
    }
    mse = f"{results['deviations']['test']['mse']:.4f}"
    assert f"| PatchTST + mean season | {mse} |" in (part / "report.md").read_text()
    assert mse in report
    model = keras.saving.load_model(part / "checkpoints/deviations-seed0.keras")
    found = forecasting.evaluate(data.windows("test", 36, 30), model)
    assert found == pytest.approx(results["deviations"]["test"], rel=1e-4)
    validated = forecasting.evaluate(data.windows("validate", 36, 30), model)["mse"]
    best = min(epoch["val_loss"] for epoch in results["deviations"]["epochs"])
    assert validated == pytest.approx(best, rel=1e-4)
    assert "|  | horizon-30: test MSE | horizon-30: test MAE |" in report
    words = " ".join((part / "report.md").read_text().split())
    assert "`daily $x$`: 2 series, 630 + 90 + 180 rows" in words
    assert report.startswith("# Forecasts of `daily $x$` from 36 steps\n")
    assert "565, 61 and 151 windows" in words
    write_again(forecasting.main, command, run)


def test_deviations_from_the_mean_day(csv):
    """Until it has learnt anything, the model forecasts the mean of the days that it reads."""
    settings = harness.parse("x", forecasting.Settings, [*TINY, "--lookback", "50"])
    data = series.load(csv)
    model = forecasting.build(data, settings, 30, "deviations", 0)
    (network,) = [layer for layer in model.layers if layer.weights]
    assert network.name == "network"  # however many were built before
    weights = {weight.path: weight for weight in network.weights}
    for path, weight in weights.items():
        if "/head/" in path:
            weight.assign(np.zeros(weight.shape))
    x, _ = data.windows("test", 50, 30)
    found = model.predict(x[:20], verbose=0)
    starts = data.starts("test", 50, 30)[:20]
    days = forecasts.seasonal_mean(data, starts, 30, 2)
    deviations = x[:20] - np.concatenate([days[:, 22:24], days[:, :24], days[:, :24]], axis=1)
    wanted = days + deviations.mean(1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_defaults_follow_the_data():
    def parse(*arguments):
        settings = forecasting.Settings
        return harness.parse("x", settings, arguments, forecasting.presets)

    assert parse() == forecasting.Settings()
    ett = parse("--csv", "ETTh1.csv", "--epochs", "3")
    assert (ett.horizons, ett.lookback, ett.epochs, ett.keep) == ((96, 336), 504, 3, "best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "/no/such.csv"], "`csv` must name a file that exists"),
        (["--lookback", "0"], "`lookback` must be an integer >= 1"),
        (["--horizons"], "`horizons` must name at least one"),
        (["--horizons", "-3"], "`horizons` must be an integer >= 1; received: horizons=-3"),
        (["--minutes", "-1"], "`minutes` must be a finite number above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert forecasting.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lookback", "20"], "`lookback` must be at least one day of the series"),
        (["--horizons", "100"], "`lookback` and `horizons` must be small enough"),
        (["--patch-length", "37"], "`input_length` must be at least `patch_length`"),
        (["--width", "5"], "`width` must be divisible by `num_heads`"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(csv, tmp_path, capsys, arguments, message):
    command = [*TINY, "--csv", str(csv), "--output", str(tmp_path / "run"), *arguments]
    assert forecasting.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
