"""Flags that recipes share, and the callbacks that they ask for."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CLIPS = ("value", "norm", "global_norm", "agc", "autoclip", "zclip")


@dataclass(frozen=True)
class RunFlags:
    """Where and how often to run, whatever the task."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    output: Path | None = None  # folder to write to; None: a new one in runs/
    resume: bool = False  # continue the run that was stopped (the newest, or the one in --output)
    seeds: int = 3  # number of runs of each model, each with another seed
    checkpoint_every: int = 100  # steps between two backups within an epoch

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        arguments.check_integers(1, seeds=self.seeds, checkpoint_every=self.checkpoint_every)


@dataclass(frozen=True)
class TrainingFlags(RunFlags):
    """How to train one model, whatever the task."""

    models: tuple[str, ...] = ()  # kinds of model to train, of those of the recipe; empty: all
    epochs: int = 10  # passes over the training data
    minutes: float | None = None  # train each model for about so long, whatever its epochs
    keep: Literal["last", "best"] = "last"  # weights to test; best: by the validation loss
    batch_size: int = 64  # examples in one training step
    learning_rate: float = 1e-3  # highest rate, reached after the warm-up; AdamW
    weight_decay: float = 0.01  # of AdamW; biases and gains do not decay
    schedule: Literal[  # of the learning rate, after the warm-up
        "cosine", "constant", "linear", "inverse_sqrt", "restarts", "one_cycle", "stable", "flat"
    ] = "cosine"
    clip: str = ""  # gradients: MODE or MODE:THRESHOLD, for example global_norm:1 or autoclip
    lr_find: bool = False  # find the highest learning rate by a range test first

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(1, epochs=self.epochs, batch_size=self.batch_size)
        arguments.check_optional_positive(minutes=self.minutes)
        make_clipping(self.clip)


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
    """The `GradientClipping` that the flag `--clip` asks for; None if the flag is empty.

    Raises:
        ValueError: If the mode is unknown, or the threshold not a number above 0.
    """
    from kattn import arguments
    from kattn.callbacks import GradientClipping

    if not text:
        return None
    mode, colon, threshold = text.partition(":")
    if mode not in CLIPS:
        raise arguments.error(
            f"`clip` must be one of {', '.join(CLIPS)}, or MODE:THRESHOLD", clip=text
        )
    try:
        limit = float(threshold) if colon else ...
    except ValueError:
        raise arguments.error("`clip` must have a number after the colon", clip=text) from None
    return GradientClipping(mode, limit)


def make_callbacks(flags: TrainingFlags, peak: float, total: int, warm_up: int) -> list[Any]:
    """The callbacks that the flags ask for.

    Args:
        flags: The settings of a recipe.
        peak: Highest learning rate.
        total: Number of updates in the whole training.
        warm_up: Number of updates at the start in which the rate rises.
    """
    from kattn.callbacks import HyperparameterSchedule, LearningRate

    schedule = make_schedule(flags.schedule, peak, total, warm_up)
    callbacks: list[Any] = [LearningRate(schedule)]
    if flags.schedule == "one_cycle":
        callbacks.append(HyperparameterSchedule("beta_1", schedule.momentum()))
    clipping = make_clipping(flags.clip)
    return callbacks if clipping is None else [*callbacks, clipping]
