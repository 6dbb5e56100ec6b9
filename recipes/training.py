"""Flags that recipes share: the schedule, clipping, and a range test for the learning rate."""

import dataclasses
import math
from typing import Any, Literal

from recipes import harness

CLIPS = ("value", "norm", "global_norm", "agc", "autoclip", "zclip")


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """How to train, whatever the task."""

    schedule: Literal[  # of the learning rate, after its warm-up
        "cosine", "constant", "linear", "inverse_sqrt", "restarts", "one_cycle", "stable", "flat"
    ] = "cosine"
    clip: str = ""  # of gradients: MODE or MODE:THRESHOLD, as global_norm:1, agc:0.02 or autoclip
    lr_find: bool = False  # find the peak of the learning rate by a range test first


def make_schedule(name: str, peak: float, total: int, warm_up: int) -> Any:
    """A schedule of `kattn.schedules` over `total` updates, the first `warm_up` of them rising."""
    from kattn import schedules

    rest = max(total - warm_up, 1)
    if name == "one_cycle":
        return schedules.OneCycle(peak, total, warmup=min(max(warm_up / total, 0.1), 0.9))
    if name == "stable":
        decay = max(total // 5, 1)
        return schedules.WarmupStableDecay(
            peak,
            max(total, warm_up + decay),
            warmup_steps=warm_up,
            decay_steps=decay,
            shape="sqrt",
        )
    after = {
        "cosine": lambda: schedules.Cosine(peak, 0.0, rest),
        "constant": lambda: schedules.Constant(peak),
        "linear": lambda: schedules.Linear(peak, 0.0, rest),
        "inverse_sqrt": lambda: schedules.InverseSquareRoot(peak, max(warm_up, 1)),
        "restarts": lambda: schedules.WarmRestarts(peak, max(math.ceil(rest / 7), 1), growth=2.0),
        "flat": lambda: schedules.FlatCosine(peak, rest),
    }[name]()
    return schedules.WarmUp(after, warm_up) if warm_up else after


def make_clipping(text: str) -> Any:
    """A `GradientClipping` from its flag; None for an empty one.

    Raises:
        ValueError: If the mode is unknown, or the threshold not a number above 0.
    """
    from kattn.callbacks import GradientClipping

    if not text:
        return None
    mode, colon, threshold = text.partition(":")
    if mode not in CLIPS:
        raise ValueError(f"clip must be one of {', '.join(CLIPS)}, or MODE:THRESHOLD: clip={text}")
    try:
        limit = float(threshold) if colon else ...
    except ValueError:
        raise ValueError(f"clip must have a number after its colon: clip={text}") from None
    return GradientClipping(mode, limit)


def make_callbacks(flags: TrainingFlags, peak: float, total: int, warm_up: int) -> list[Any]:
    """What the flags ask for, each with its place in the logs of epochs."""
    from kattn.callbacks import HyperparameterSchedule, LearningRate

    schedule = make_schedule(flags.schedule, peak, total, warm_up)
    found: list[Any] = [LearningRate(schedule)]
    if flags.schedule == "one_cycle":
        found.append(HyperparameterSchedule("beta_1", schedule.momentum()))
    clipping = make_clipping(flags.clip)
    return found if clipping is None else [*found, clipping]


def find_rate(model: Any, data: Any, folder: harness.RunFolder, flags: TrainingFlags) -> float:
    """A peak of the learning rate: the valley of a range test, whose plot and file are kept."""
    from kattn.callbacks import LearningRateFinder

    known = folder.read_json("lr_find.json")
    if known is None:
        clipping = make_clipping(flags.clip)
        callbacks = [] if clipping is None else [clipping]
        finder = LearningRateFinder(low=1e-6, high=1.0, steps=100)
        curve = finder.run(model, data, shuffle=False, callbacks=callbacks)
        with folder.writing("lr_find.png") as path:
            curve.plot(path)
        known = curve.suggestions
        folder.write_json("lr_find.json", known)
    shown = ", ".join(f"{name} {rate:.2g}" for name, rate in known.items())
    print(f"Learning rates found: {shown}; the first is used", flush=True)
    return float(known["valley"])
