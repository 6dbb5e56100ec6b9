"""Time series: how they are read, split, scaled and cut into windows."""

import numpy as np
import pytest

from recipes.data import series
from tests.recipes.real_data import real_data


def write(path, values, *, hours=1, name="a.csv"):
    start = np.datetime64("2020-01-01T00:00")
    times = start + np.arange(len(values)) * np.timedelta64(hours, "h")
    lines = [
        f"{time}:00,{','.join(map(str, row))}" for time, row in zip(times, values, strict=True)
    ]
    target = path / name
    target.write_text("date,a,b\n" + "\n".join(lines) + "\n")
    return target


@pytest.fixture
def values(rng):
    return rng.normal(size=(100, 2)) * [1.0, 50.0] + [3.0, -7.0]


def test_other_files_are_split_by_shares(values, tmp_path):
    found = series.load(write(tmp_path, values))
    assert found.borders == (70, 80, 100)
    assert (found.name, found.period, found.season) == ("a", 24, "day")
    train = values[:70]
    np.testing.assert_allclose(
        found.values, (values - train.mean(0)) / train.std(0), rtol=1e-5, atol=1e-6
    )
    assert series.load(write(tmp_path, values, hours=6)).period == 4
    assert found.about == "a: 2 series, 70 + 10 + 20 rows"


def test_windows(values, tmp_path):
    found = series.load(write(tmp_path, values))
    for part, first, count in (("train", 5, 63), ("validate", 70, 8), ("test", 80, 18)):
        starts = found.starts(part, 5, 3)
        np.testing.assert_array_equal(starts, np.arange(first, first + count))
        x, y = found.windows(part, 5, 3)
        assert (x.shape, y.shape) == ((count, 5, 2), (count, 3, 2))
        for row in (0, count - 1):
            np.testing.assert_array_equal(x[row], found.values[starts[row] - 5 : starts[row]])
            np.testing.assert_array_equal(y[row], found.values[starts[row] : starts[row] + 3])
        assert np.shares_memory(x, found.values)
    with pytest.raises(
        ValueError, match=r"`lookback` and `horizons` .*horizon=11, part='validate'"
    ):
        found.windows("validate", 5, 11)


def test_ett_files_are_split_by_months(tmp_path, rng):
    values = rng.normal(size=(14_420, 2))
    found = series.load(write(tmp_path, values, name="ETTh9.csv"))
    assert found.borders == (8640, 11520, 14400)
    counts = {horizon: len(found.starts("test", 336, horizon)) for horizon in (96, 192, 336, 720)}
    assert counts == {96: 2785, 192: 2689, 336: 2545, 720: 2161}  # of the literature, all of them
    assert len(found.starts("train", 336, 96)) == 8640 - 336 - 96 + 1
    with pytest.raises(ValueError, match=r"20 months.*rows=14390, needed=14400"):
        series.load(write(tmp_path, values[:14_390], name="ETTh9.csv"))


def test_missing_numbers_are_interpolated(tmp_path):
    path = tmp_path / "gaps.csv"
    rows = ["20200101,1", "20200102,", "20200103, ", "20200104,4", *["20200105,4"] * 6]
    path.write_text("date,a\n" + "\n".join(rows))
    found = series.load(path).values[:4, 0]
    np.testing.assert_allclose(np.diff(found), np.full(3, found[3] - found[0]) / 3, rtol=1e-5)


def test_the_default_series_comes_with_statsmodels():
    pytest.importorskip("statsmodels")
    found = series.load(None)
    assert found.values.shape == (2284, 1)
    assert found.borders == (1598, 1828, 2284)
    assert (found.period, found.season) == (52, "year")
    assert np.isfinite(found.values).all()
    assert (np.diff(found.values[::52, 0]) > 0).mean() > 0.9  # it grows year by year


def test_statsmodels_is_missing(monkeypatch):
    monkeypatch.setattr(series, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`csv` must be given where statsmodels.*\[recipes\]"):
        series.load(None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("date,a\nx,1\ny,2\n", "Invalid isoformat string"),
        ("date,a\n20200101,1\n20200102,one\n", "could not convert string to float"),
        ("date,a\n20200102,1\n20200101,2\n", "is not after the first"),
        ("date,a\n20200101,1,2\n20200102,3\n", "inhomogeneous"),
        ("", "not enough values"),
    ],
)
def test_files_that_are_no_series(tmp_path, content, reason):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"`csv` must have a line of names.*{reason}"):
        series.load(path)
    with pytest.raises(FileNotFoundError, match="`csv` must name a file that exists"):
        series.load(tmp_path / "absent.csv")


def test_etth1():
    found = series.load(real_data("ett/ETTh1.csv"))
    assert found.values.shape == (17_420, 7)
    assert found.about == "ETTh1: 7 series, 8,640 + 2,880 + 2,880 rows"
