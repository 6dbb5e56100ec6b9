"""The recipe from the command line, on a short series: result, resume and bad input."""

import json

import keras
import numpy as np
import pytest

from recipes import forecasting, harness
from recipes.data import forecasts, series
from recipes.harness import forecast_figure

TINY = [
    *("--seeds", "1"),
    *("--epochs", "2"),
    *("--batch-size", "64"),
    *("--horizons", "30"),
    *("--lookback", "36"),
    *("--units", "4"),
    *("--segment-length", "6"),
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
    kinds = ("gru", "sa-rnn-w5", "sa-segments", "deviations")
    command = [*TINY, "--csv", str(csv), "--output", str(run), "--models", *kinds]
    command += ["--sweep-windows", "5"]
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
        kind: json.loads((part / f"history/{kind}-seed0.json").read_text()) for kind in kinds
    }
    told = (part / "report.md").read_text()
    for kind, title in {
        "gru": "GRU",
        "sa-rnn-w5": "SA-RNN, window 5 + mean season",
        "sa-segments": "SA-RNN over segments + mean season",
        "deviations": "PatchTST + mean season",
    }.items():
        mse = f"{results[kind]['test']['mse']:.4f}"
        assert f"| {title} | {mse} |" in told
        assert mse in report
    model = keras.saving.load_model(part / "checkpoints/deviations-seed0.keras")
    found = forecasting.evaluate(data.windows("test", 36, 30), model)
    assert found == pytest.approx(results["deviations"]["test"], rel=1e-4)
    validated = forecasting.evaluate(data.windows("validate", 36, 30), model)["mse"]
    best = min(epoch["val_loss"] for epoch in results["deviations"]["epochs"])
    assert validated == pytest.approx(best, rel=1e-4)
    assert "|  | horizon-30: test MSE | horizon-30: test MAE |" in report
    words = " ".join(told.split())
    assert "`daily $x$`: 2 series, 630 + 90 + 180 rows" in words
    assert report.startswith("# Forecasts of `daily $x$` from 36 steps\n")
    assert "565, 61 and 151 windows" in words
    write_again(forecasting.main, command, run)


@pytest.mark.parametrize("kind", ["gru-season", "sa-segments", "deviations"])
def test_deviations_from_the_mean_day(csv, kind):
    """Until it has learnt anything, the model forecasts the mean of the days that it reads."""
    sizes = ["--lookback", "50", "--segment-length", "10"]
    settings = harness.parse("x", forecasting.Settings, [*TINY, *sizes])
    data = series.load(csv)
    model = forecasting.build(data, settings, 30, kind, 0)
    (network,) = [layer for layer in model.layers if layer.weights]
    assert network.name == "network"  # however many were built before
    for weight in network.weights:
        if "head/" in weight.path or "forecast/" in weight.path:
            weight.assign(np.zeros(weight.shape))
    x, _ = data.windows("test", 50, 30)
    found = model.predict(x[:20], verbose=0)
    starts = data.starts("test", 50, 30)[:20]
    days = forecasts.seasonal_mean(data, starts, 30, 2)
    deviations = x[:20] - np.concatenate([days[:, 22:24], days[:, :24], days[:, :24]], axis=1)
    wanted = days + deviations.mean(1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_kinds_differ_in_what_they_read(csv):
    """A GRU reads the steps of all series together, or segments of one series; each attends or not.

    The window is part of the attention, and without attention there is none.
    """
    settings = harness.parse("x", forecasting.Settings, [*TINY, "--sweep-windows", "5"])
    data = series.load(csv)
    read = {}
    for kind in forecasting.kinds_of(settings):
        model = forecasting.build(data, settings, 30, kind, 0)
        assert model(np.zeros((1, 36, 2), "float32")).shape == (1, 30, 2)
        if kind not in ("patchtst", "deviations"):
            network = model if kind == "gru" else model.get_layer("network")
            rnn = network.get_layer("rnn0")
            attends = type(rnn).__name__ == "SelfAttentionRNN"
            steps, width = network.get_layer("embedding").input.shape[1:]
            read[kind] = steps, width, attends, rnn.get_config().get("window")
    assert read == {
        "gru": (36, 2, False, None),
        "gru-season": (36, 2, False, None),
        "sa-rnn": (36, 2, True, None),
        "sa-rnn-w5": (36, 2, True, 5),
        "segments": (6, 6, False, None),
        "sa-segments": (6, 6, True, None),
    }


class Constant:
    """A model that forecasts one number everywhere."""

    def __init__(self, number):
        self.number = number

    def predict(self, x, **options):
        return np.full((len(x), 5, 2), self.number)


@pytest.mark.parametrize(
    ("kinds", "drawn"), [(["gru", "segments"], ["gru"]), (["patchtst"], ["patchtst"])]
)
def test_the_figure_of_forecasts(tmp_path, monkeypatch, kinds, drawn):
    """Of a few kinds that differ most, or of others if none of these is trained."""
    windows = np.zeros((7, 12, 2), "float32"), np.zeros((7, 5, 2), "float32")
    models = {kind: Constant(i + 1) for i, kind in enumerate(kinds)}
    titles = {kind: f"the {kind}" for kind in kinds}
    seen = []
    draw = forecast_figure.forecasts_figure
    monkeypatch.setattr(
        forecast_figure, "forecasts_figure", lambda *given: seen.append(draw(*given)) or seen[0]
    )
    told = forecast_figure.section(windows, titles, models, harness.RunFolder(tmp_path))
    assert "forecasts.png" in told["Forecasts"]
    names = [text.get_text() for text in seen[0].legends[0].get_texts()]
    assert names == [titles[kind] for kind in drawn]
    for panel in seen[0].axes:
        series_line, *lines = panel.lines
        assert len(series_line.get_ydata()) == 10 + 5
        assert [line.get_ydata().tolist() for line in lines] == [[1.0] * 5]


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
        (["--sweep-windows", "0"], "`sweep_windows` must be an integer >= 1"),
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
        (["--segment-length", "5"], "`segment_length` must divide `input_length`"),
        (["--units", "5"], "`units` must be divisible by `num_heads`"),
        (["--patch-length", "37"], "`input_length` must be at least `patch_length`"),
        (["--width", "5"], "`width` must be divisible by `num_heads`"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(csv, tmp_path, capsys, arguments, message):
    command = [*TINY, "--csv", str(csv), "--output", str(tmp_path / "run"), *arguments]
    assert forecasting.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
