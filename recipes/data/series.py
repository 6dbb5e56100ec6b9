"""Time series as NumPy arrays: a CSV file, or the CO2 series that comes with statsmodels."""

import datetime
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ETT_PER_HOUR = {"ETTh": 1, "ETTm": 4}  # rows in an hour, by the beginning of the file's name
ETT_MONTHS = (12, 4, 4)  # of 30 days, to train, validate and test


@dataclass(frozen=True)
class Series:
    """Series `(rows, channels)` float32, scaled by mean and deviation of the rows to train."""

    name: str
    values: np.ndarray
    borders: tuple[int, int, int]  # where the rows to train, to validate and to test end
    period: int  # rows in a season: a day or a year
    profiles: tuple[int, int]  # seasons over which seasonal means are taken
    season: str  # "day" or "year"

    @property
    def about(self) -> str:
        """Name and sizes, in a line."""
        train, validate, test = self.borders
        return (
            f"{self.name}: {self.values.shape[1]} series, {train:,} + {validate - train:,} + "
            f"{test - validate:,} rows"
        )

    def starts(self, part: str, lookback: int, horizon: int) -> np.ndarray:
        """The rows at which forecasts begin.

        Args:
            part: "train", "validate" or "test". What is read before the first forecast of the last
                two are rows of the part before.
            lookback: Number of rows that are read.
            horizon: Number of rows that are forecast, all of which are in the part.

        Raises:
            ValueError: If the part has too few rows.
        """
        first, last = {
            "train": (lookback, self.borders[0]),
            "validate": self.borders[:2],
            "test": self.borders[1:],
        }[part]
        if last - horizon < first or first < lookback:
            raise ValueError(
                "`lookback` and `horizons` must be small enough for the rows of the series; "
                f"received: {lookback=}, {horizon=}, part={part!r}, rows={last - first}"
            )
        return np.arange(first, last - horizon + 1)

    def windows(self, part: str, lookback: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """What is read, `(count, lookback, channels)`, and what comes then; both without a copy."""
        starts = self.starts(part, lookback, horizon)
        return (
            _views(self.values, int(starts[0]) - lookback, len(starts), lookback),
            _views(self.values, int(starts[0]), len(starts), horizon),
        )


def _views(values: np.ndarray, first: int, count: int, length: int) -> np.ndarray:
    rows = values[first : first + count + length - 1]
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(rows, length, axis=0), -1, 1)


def load(csv: Path | None) -> Series:
    """Read a CSV file, whose first column is a date and whose others are numbers.

    Rows are split as in the code of LTSF-Linear (Zeng et al. 2022,
    https://github.com/cure-lab/LTSF-Linear): those of the files ETTh1, ETTh2, ETTm1 and ETTm2 by
    months of 30 days, 12 + 4 + 4; of other files 70 % are to train and 20 % to test.

    Args:
        csv: The file. Missing numbers are interpolated. None for the CO2 in the air of Mauna Loa
            week by week from 1958 to 2001 (Keeling and Whorf 2004), which statsmodels has.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If statsmodels is missing, or the file is not of this kind.
    """
    if csv is None:
        values, _ = _read(_co2_file())
        return _scaled("CO2 of Mauna Loa", values, _shares(len(values)), 52, (2, 5), "year")
    if not csv.is_file():
        raise FileNotFoundError(f"`csv` must name a file that exists; received: csv={str(csv)!r}")
    values, step = _read(csv)
    per_hour = ETT_PER_HOUR.get(csv.name[:4])
    if per_hour is None:
        day = max(round(datetime.timedelta(days=1) / step), 1)
        return _scaled(csv.stem, values, _shares(len(values)), day, (7, 21), "day")
    borders = tuple(int(end) for end in np.cumsum(ETT_MONTHS) * 30 * 24 * per_hour)
    if len(values) < borders[-1]:
        raise ValueError(
            f"`csv` must have 20 months, if it is an ETT file; "
            f"received: csv={str(csv)!r}, rows={len(values)}, needed={borders[-1]}"
        )
    return _scaled(csv.stem, values, borders, 24 * per_hour, (7, 21), "day")


def _co2_file() -> Path:
    found = find_spec("statsmodels")
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "`csv` must be given where statsmodels, which has the default series, is missing "
            "(pip install 'kattn[recipes]'); received: csv=None"
        )
    # By its path: importing statsmodels would import pandas, which nothing here needs.
    return Path(found.submodule_search_locations[0]) / "datasets" / "co2" / "co2.csv"


def _read(path: Path) -> tuple[np.ndarray, datetime.timedelta]:
    """The numbers `(rows, channels)`, and the time from the first row to the second."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        rows = [line.split(",") for line in lines if line.strip()]
        values = np.array([[float(x) if x.strip() else np.nan for x in row[1:]] for row in rows])
        first, second = (datetime.datetime.fromisoformat(row[0]) for row in rows[:2])
        if second <= first:
            raise ValueError(f"the second date, {second}, is not after the first")
    except ValueError as reason:
        raise ValueError(
            "`csv` must have a line of names, then lines of a date (YYYY-MM-DD, YYYYMMDD, with or "
            "without a time) and numbers; "
            f"received: csv={str(path)!r}, reason={str(reason)!r}"
        ) from None
    every = np.arange(len(values))
    for column in values.T:
        known = np.isfinite(column)
        column[:] = np.interp(every, every[known], column[known])
    return values, second - first


def _shares(rows: int) -> tuple[int, int, int]:
    train, test = int(0.7 * rows), int(0.2 * rows)
    return train, rows - test, rows


def _scaled(
    name: str,
    values: np.ndarray,
    borders: tuple[int, ...],
    period: int,
    profiles: tuple[int, int],
    season: str,
) -> Series:
    train = values[: borders[0]]
    deviation = np.where(train.std(0) > 0, train.std(0), 1.0)
    scaled = (values - train.mean(0)) / deviation
    ends = borders[0], borders[1], borders[2]
    return Series(name, scaled.astype("float32"), ends, period, profiles, season)
