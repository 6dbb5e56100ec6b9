"""Schedules that go from one value towards another by a simple law."""

import dataclasses
import math

import keras

from kattn.schedules.arguments import (
    check_boundaries,
    check_counts,
    check_positive,
    check_rates,
)
from kattn.schedules.curves import between, fraction, whole_cycles
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same at every step.

    Args:
        constant: The value, >= 0.

    Raises:
        ValueError: If it is no number >= 0.

    Example:
        >>> kattn.schedules.Constant(0.5)(100)
        0.5
    """

    constant: float

    def check(self):
        check_rates(constant=self.constant)

    def value(self, t, xp):
        return self.constant + 0.0 * t


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """start + (end - start) t / steps, then `end`.

    Args:
        start: The value at step 0, >= 0.
        end: The value from `steps` on, >= 0; may be above `start`.
        steps: Updates from one to the other, an integer >= 1.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.Linear(1.0, 0.0, 4)(1)
        0.75
    """

    start: float
    end: float
    steps: int

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_counts(1, steps=self.steps)

    def value(self, t, xp):
        return between(self.start, self.end, fraction(t, self.steps, xp))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """end + (start - end) (1 - t / steps)^power, then `end`.

    Args:
        start: The value at step 0, >= 0.
        end: The value from `steps` on, >= 0; may be above `start`.
        steps: Updates from one to the other, an integer >= 1.
        power: Above 0; 1 is `Linear`.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.Polynomial(1.0, 0.0, 4)(2)
        0.25

    Reference:
        Chen et al. 2018, sec. 4.1, "poly" with power 0.9, https://arxiv.org/abs/1606.00915
    """

    start: float
    end: float
    steps: int
    _: dataclasses.KW_ONLY
    power: float = 2.0

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_counts(1, steps=self.steps)
        check_positive(power=self.power)

    def value(self, t, xp):
        remaining = fraction(self.steps - t, self.steps, xp)
        return between(self.end, self.start, remaining**self.power)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """start rate^(t / steps), without end.

    Args:
        start: The value at step 0, >= 0.
        rate: Factor for every `steps` updates, above 0.
        steps: An integer >= 1.
        staircase: If True, the factor comes at once after `steps` updates: the exponent is
            floor(t / steps).

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.Exponential(1.0, 0.25, 10, staircase=True)(19)
        0.25
    """

    start: float
    rate: float
    steps: int
    _: dataclasses.KW_ONLY
    staircase: bool = False

    def check(self):
        check_rates(start=self.start)
        check_positive(rate=self.rate)
        check_counts(1, steps=self.steps)
        if not isinstance(self.staircase, bool):
            raise ValueError(f"`staircase` must be a bool; received: staircase={self.staircase!r}")

    def value(self, t, xp):
        exponent = whole_cycles(t, self.steps, xp) if self.staircase else t / self.steps
        # Not rate**exponent: 0.999999 in float32, to the power of 10^6, is wrong by 3 %.
        return self.start * xp.exp(math.log(self.rate) * exponent)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """start factor^n, where n is how many of the boundaries are <= t.

    Args:
        start: The value before the first boundary, >= 0.
        boundaries: Span at which the factor comes in: integers >= 1, each above the one before.
        factor: Above 0.

    Raises:
        ValueError: For arguments out of range, or no boundary at all.

    Example:
        >>> kattn.schedules.Step(1.0, [80, 120], factor=0.5)([79, 80, 120])
        array([1.  , 0.5 , 0.25])

    Reference:
        He et al. 2016, sec. 4.2, factor 0.1 at 32000 and 48000, https://arxiv.org/abs/1512.03385
    """

    start: float
    boundaries: tuple[int, ...]
    _: dataclasses.KW_ONLY
    factor: float = 0.1

    def check(self):
        check_rates(start=self.start)
        check_boundaries(self.boundaries)
        check_positive(factor=self.factor)
        if not self.boundaries:
            raise ValueError("`boundaries` must hold a step at least; received: boundaries=()")

    def value(self, t, xp):
        found = self.start + 0.0 * t
        for count, boundary in enumerate(self.boundaries, 1):
            found = xp.where(t >= boundary, self.start * self.factor**count + 0.0 * t, found)
        return found
