"""Networks that forecast series, by themselves or around the mean season of what they read.

They need Keras, so import this only once the backend is chosen.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from kattn.models import sa_rnn

NETWORK = "network"  # name of each network; of a counted one, a report after --resume would differ


class Kind(NamedTuple):
    """A kind of model.

    Args:
        title: Its name in a report.
        is_around_season: Whether it forecasts the deviations from the mean season.
        recurrent: What `recurrent` makes it of, by argument. None for a PatchTST.
    """

    title: str
    is_around_season: bool = True
    recurrent: Mapping[str, int | None] | None = None


def kinds(segment_length: int, num_heads: int, windows: Iterable[int] = ()) -> dict[str, Kind]:
    """The kinds of models by name.

    Args:
        segment_length: Number of steps of a segment.
        num_heads: Number of heads of the attention over the outputs of a GRU.
        windows: Numbers of single steps that further kinds see.
    """
    steps: dict[str, int | None] = {"segment_length": None, "num_heads": None, "window": None}
    attending = {**steps, "num_heads": num_heads}
    segments = {"segment_length": segment_length}
    swept = {
        f"sa-rnn-w{window}": Kind(
            f"SA-RNN, window {window} + mean season", recurrent={**attending, "window": window}
        )
        for window in windows
    }
    return {
        "gru": Kind("GRU", is_around_season=False, recurrent=steps),
        "gru-season": Kind("GRU + mean season", recurrent=steps),
        "sa-rnn": Kind("SA-RNN + mean season", recurrent=attending),
        **swept,
        "segments": Kind("GRU over segments + mean season", recurrent={**steps, **segments}),
        "sa-segments": Kind(
            "SA-RNN over segments + mean season", recurrent={**attending, **segments}
        ),
        "patchtst": Kind("PatchTST", is_around_season=False),
        "deviations": Kind("PatchTST + mean season"),
    }


def recurrent(
    shape: tuple[int, int],
    horizon: int,
    *,
    segment_length: int | None,
    units: int,
    num_heads: int | None,
    window: int | None,
    dropout: float,
) -> Any:
    """A GRU from series `(B, L, M)` to `(B, horizon, M)`, by its last output.

    Args:
        shape: Number of steps that are read, L, and of series, M.
        horizon: Number of steps that are forecast.
        segment_length: Number of steps of a series, each for itself, that are one step of the GRU.
            None for a step of all series together, which is what a GRU commonly reads.
        units: Number of channels.
        num_heads: Number of heads of the attention over the outputs of the GRU. None for none.
        window: Number of steps of the GRU that attention sees. None for all.
        dropout: Fraction of the channels that are dropped behind the GRU.
    """
    steps, series = shape
    return sa_rnn(
        input_width=series,
        input_length=steps,
        horizon=horizon,
        segment_length=segment_length or 1,
        channel_independent=segment_length is not None,
        pooling="last",
        units=units,
        num_heads=num_heads,
        window=window,
        rnn="gru",
        dropout=dropout,
        name=NETWORK,
    )


def around_mean_season(network: Any, shape: tuple[int, int], horizon: int, period: int) -> Any:
    """A model that forecasts what comes on top of the mean season, of which it reads no more.

    Args:
        network: Model from series `(B, L, M)` to forecasts `(B, horizon, M)`.
        shape: Number of steps that are read, L, and of series, M.
        horizon: Number of steps that are forecast.
        period: Number of steps of a season. The mean is that of all whole seasons that are read.
    """
    steps, channels = shape
    seasons = steps // period
    x = keras.Input(shape)
    last = ops.reshape(x[:, -seasons * period :], (-1, seasons, period, channels))
    mean = ops.mean(last, axis=1)  # which begins with the time of the first forecast step
    read = ops.tile(mean, (1, seasons + 1, 1))[:, -steps:]
    ahead = ops.tile(mean, (1, -(-horizon // period), 1))[:, :horizon]
    return keras.Model(x, network(x - read) + ahead)
