"""Schedules that fall along half a cosine wave, once."""

import dataclasses

import keras

from kattn.arguments import check_integers, check_open_fractions, check_rates
from kattn.schedules.curves import between, fraction, half_wave
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Fall from `start` to `end` along half a cosine wave, then stay at `end`.

    The value is end + (start - end) (1 + cos(pi t / steps)) / 2 up to step `steps`.

    Args:
        start: Value at step 0, >= 0.
        end: Value from step `steps` on, >= 0. It may be above `start`.
        steps: Number of updates from `start` to `end`, an integer >= 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.Cosine(1.0, 0.5, 10)(5)
        0.75

    Reference:
        Loshchilov & Hutter 2017, eq. 5 with no restart, https://arxiv.org/abs/1608.03983
    """

    start: float
    end: float
    steps: int

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_integers(1, steps=self.steps)

    def value(self, t, xp):
        return between(self.start, self.end, half_wave(fraction(t, self.steps, xp), xp))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class FlatCosine(Schedule):
    """Stay at `start`, then fall to `end` along half a cosine wave.

    The value is `start` up to step flat * steps, and `end` from step `steps` on.

    Args:
        start: Value at step 0, >= 0.
        steps: Number of updates until `end`, an integer >= 1.
        flat: Fraction of `steps` before the value begins to fall, in (0, 1).
        end: Value from step `steps` on, >= 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.FlatCosine(1.0, 100, flat=0.5)([50, 75, 100])
        array([1. , 0.5, 0. ])

    Reference:
        fastai's `fit_flat_cos`, https://docs.fast.ai/callback.schedule.html (Howard & Gugger 2020,
        https://arxiv.org/abs/2002.04688), which ends at start / 1e5 instead of 0.
    """

    start: float
    steps: int
    _: dataclasses.KW_ONLY
    flat: float = 0.75
    end: float = 0.0

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_integers(1, steps=self.steps)
        check_open_fractions(flat=self.flat)

    def value(self, t, xp):
        remaining = fraction(self.steps - t, self.steps * (1.0 - self.flat), xp)
        return between(self.end, self.start, half_wave(remaining, xp))
