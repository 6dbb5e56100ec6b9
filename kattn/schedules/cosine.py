"""Schedules that fall as half a cosine wave, once."""

import dataclasses

import keras

from kattn.schedules.arguments import check_counts, check_fractions, check_rates
from kattn.schedules.curves import between, fraction, half_wave
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """end + (start - end) (1 + cos(pi t / steps)) / 2, then `end`.

    Args:
        start: The value at step 0, >= 0.
        end: The value from `steps` on, >= 0; may be above `start`.
        steps: Updates from one to the other, an integer >= 1.

    Raises:
        ValueError: For arguments out of range.

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
        check_counts(1, steps=self.steps)

    def value(self, t, xp):
        return between(self.start, self.end, half_wave(fraction(t, self.steps, xp), xp))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class FlatCosine(Schedule):
    """`start` up to step flat * steps, then half a cosine wave to `end` at `steps`.

    Args:
        start: The value at step 0, >= 0.
        steps: Updates until `end`, an integer >= 1.
        flat: Fraction of `steps` before the wave, in (0, 1).
        end: The value from `steps` on, >= 0.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.FlatCosine(1.0, 100, flat=0.5)([50, 75, 100])
        array([1. , 0.5, 0. ])

    Reference:
        fastai's `fit_flat_cos`, https://docs.fast.ai/callback.schedule.html (Howard & Gugger 2020,
        https://arxiv.org/abs/2002.04688), which ends at start / 1e5.
    """

    start: float
    steps: int
    _: dataclasses.KW_ONLY
    flat: float = 0.75
    end: float = 0.0

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_counts(1, steps=self.steps)
        check_fractions(flat=self.flat)

    def value(self, t, xp):
        remaining = fraction(self.steps - t, self.steps * (1.0 - self.flat), xp)
        return between(self.end, self.start, half_wave(remaining, xp))
