"""How the sides of a benchmark are timed: in turns in one process, so that noise meets them all."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def milliseconds(run: Callable[[], Any]) -> float:
    """What one call takes, with all that it started on a GPU."""
    start = time.perf_counter()
    run()
    wait()
    return 1e3 * (time.perf_counter() - start)


def wait() -> None:
    """Until PyTorch's work on a GPU is done; functions of other frameworks wait for their own."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(
    sides: Mapping[str, Callable[[], float]],
    turns: int,
    *,
    fewest: int = 1,
    seconds: float = float("inf"),
) -> dict[str, list[float]]:
    """What each side returned, by name; in every turn each side is called once.

    Args:
        sides: Functions that return milliseconds. They have been called before: none of them
            compiles any more.
        turns: Number of turns, at most.
        fewest: Number of turns, at least.
        seconds: Time after which no further turn begins, once there were `fewest`.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    begin = time.perf_counter()
    for turn in range(turns):
        if turn >= fewest and time.perf_counter() - begin > seconds:
            break
        for name, side in sides.items():
            times[name].append(side())
    return times


def compared(ours: Sequence[float], theirs: Sequence[float], *, digits: int = 2) -> dict[str, Any]:
    """The fields of a record: medians in ms over turns, and the median of the turns' ratios."""
    return {
        "kattn_ms": round(statistics.median(ours), digits),
        "peer_ms": round(statistics.median(theirs), digits),
        "ratio": round(statistics.median(_ratios(ours, theirs)), max(digits, 3)),
    }


def quartiles(ours: Sequence[float], theirs: Sequence[float], *, digits: int = 2) -> dict[str, Any]:
    """Further fields of a record: `[lower, upper]` quartiles of what `compared` has medians of."""
    found = {
        "kattn_quartiles": (ours, digits),
        "peer_quartiles": (theirs, digits),
        "ratio_quartiles": (_ratios(ours, theirs), max(digits, 3)),
    }
    return {
        name: [round(x, places) for x in _lower_and_upper(values)]
        for name, (values, places) in found.items()
    }


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _lower_and_upper(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper
