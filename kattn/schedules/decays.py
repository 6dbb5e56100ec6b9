"""Schedules that go from one value towards another in a simple way."""

import dataclasses
import math

import keras

from kattn.arguments import check_integers, check_positive, check_rates, error
from kattn.schedules.boundaries import check_boundaries
from kattn.schedules.curves import between, fraction, whole_cycles
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """Return the same value at every step.

    Args:
        constant: Value at every step, >= 0.

    Raises:
        ValueError: If `constant` is not a number >= 0.

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
    """Go linearly from `start` to `end`, then stay at `end`.

    The value is start + (end - start) t / steps up to step `steps`.

    Args:
        start: Value at step 0, >= 0.
        end: Value from step `steps` on, >= 0. It may be above `start`.
        steps: Number of updates from `start` to `end`, an integer >= 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.Linear(1.0, 0.0, 4)(1)
        0.75
    """

    start: float
    end: float
    steps: int

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_integers(1, steps=self.steps)

    def value(self, t, xp):
        return between(self.start, self.end, fraction(t, self.steps, xp))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """Go from `start` to `end` along a power of the remaining steps, then stay at `end`.

    The value is end + (start - end) (1 - t / steps)^power up to step `steps`.

    Args:
        start: Value at step 0, >= 0.
        end: Value from step `steps` on, >= 0. It may be above `start`.
        steps: Number of updates from `start` to `end`, an integer >= 1.
        power: Exponent, above 0. With 1 it is the same as `Linear`.

    Raises:
        ValueError: If an argument is out of range.

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
        check_integers(1, steps=self.steps)
        check_positive(power=self.power)

    def value(self, t, xp):
        remaining = fraction(self.steps - t, self.steps, xp)
        return between(self.end, self.start, remaining**self.power)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply the value by `rate` every `steps` updates, without an end.

    The value is start rate^(t / steps).

    Args:
        start: Value at step 0, >= 0.
        rate: Factor on the value for every `steps` updates, above 0.
        steps: Number of updates for one factor, an integer >= 1.
        staircase: If True, the value changes at once after every `steps` updates: the exponent is
            floor(t / steps).

    Raises:
        ValueError: If an argument is out of range.

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
        check_integers(1, steps=self.steps)
        if not isinstance(self.staircase, bool):
            raise error("`staircase` must be a bool", staircase=self.staircase)

    def value(self, t, xp):
        exponent = whole_cycles(t, self.steps, xp) if self.staircase else t / self.steps
        # Not rate**exponent: 0.999999 in float32, to the power of 10^6, is wrong by 3 %.
        return self.start * xp.exp(math.log(self.rate) * exponent)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """Multiply the value by `factor` at each of the given steps.

    The value is start factor^n, where n is the number of boundaries that are <= t.

    Args:
        start: Value before the first boundary, >= 0.
        boundaries: List of the steps at which the value is multiplied: integers >= 1, each above
            the one before.
        factor: Factor on the value at each boundary, above 0.

    Raises:
        ValueError: If an argument is out of range, or there is no boundary.

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
            raise error("`boundaries` must have at least one step", boundaries=self.boundaries)

    def value(self, t, xp):
        value = self.start + 0.0 * t
        for count, boundary in enumerate(self.boundaries, 1):
            value = xp.where(t >= boundary, self.start * self.factor**count + 0.0 * t, value)
        return value
