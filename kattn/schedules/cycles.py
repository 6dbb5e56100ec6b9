"""Schedules that repeat a cycle."""

import dataclasses
import math

import keras
import numpy as np

from kattn.arguments import (
    check_choice,
    check_factors,
    check_integers,
    check_order,
    check_positive,
    check_rates,
    error,
)
from kattn.schedules.curves import between, fraction, half_wave, whole_cycles
from kattn.schedules.schedule import Schedule

SHAPES = ("triangular", "triangular2", "exp_range")
SLOWEST = 1.01  # the least growth: about 1700 cycles until the last step
LAST = 2**31  # the last step at which a growing cycle may begin


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Fall along half a cosine wave, and begin again, in cycles that may grow.

    The value is end + (start decay^i - end) (1 + cos(pi u)) / 2 at the share u of cycle i = 0, 1,
    and so on. Cycle i has steps * growth^i updates, rounded to a whole number; u is 0 at the first.

    Args:
        start: Value at step 0, >= 0.
        steps: Number of updates of the first cycle, an integer >= 1.
        end: Value to which each cycle falls without reaching it, >= 0.
        growth: Factor on the length of the cycle with each restart (T_mult in the paper): 1, or at
            least 1.01.
        decay: Factor on `start` with each restart, above 0. If `start` falls below `end`, cycles
            rise.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.WarmRestarts(1.0, 10, growth=2.0, decay=0.5)([0, 5, 10, 20, 30])
        array([1.  , 0.5 , 0.5 , 0.25, 0.25])

    Reference:
        Loshchilov & Hutter 2017, eq. 5, https://arxiv.org/abs/1608.03983. T_cur counts updates
        here; in the paper it counts fractions of epochs, and lengths are not rounded.
    """

    start: float
    steps: int
    _: dataclasses.KW_ONLY
    end: float = 0.0
    growth: float = 1.0
    decay: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "_begins", _begins(self.steps, self.growth))

    def check(self):
        check_rates(start=self.start, end=self.end)
        check_integers(1, steps=self.steps)
        check_positive(growth=self.growth, decay=self.decay)
        if self.growth != 1.0 and self.growth < SLOWEST:
            raise error(f"`growth` must be 1 or at least {SLOWEST}", growth=self.growth)

    def value(self, t, xp):
        count, begin, length = self._cycle(t, xp)
        height = self.start * xp.exp(xp.multiply(math.log(self.decay), count))
        return between(height, self.end, half_wave(fraction(t - begin, length, xp), xp))

    def _cycle(self, t, xp):
        """The number of cycles before the one of step t, and its first step and length."""
        if self.growth == 1:
            count = whole_cycles(t, self.steps, xp)
            return count, count * self.steps, self.steps
        # From whole steps, which are exact: in float32 log(t) is wrong for steps near a restart.
        begins = xp.array(self._begins, dtype=t.dtype)
        places = xp.searchsorted(begins[1:-1], xp.reshape(t, (-1,)), side="right")
        count = xp.reshape(places, xp.shape(t))
        begin = xp.take(begins, count)
        return count, begin, xp.take(begins, count + 1) - begin


def _begins(steps, growth):
    """The first step of each growing cycle, until one is beyond `LAST`.

    It is an array, as TorchDynamo takes a minute for a tuple of so many numbers.
    """
    begins = [0, steps]
    while growth > 1 and begins[-1] < LAST:
        begins.append(begins[-1] + round(steps * growth ** (len(begins) - 1)))
    return np.array(begins, np.float64)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Cyclical(Schedule):
    """Rise linearly from `low` to `high` and fall back, in cycles.

    The value is low + (high - low) max(0, 1 - x) scale with x = |t / half_cycle - 2c + 1|, in cycle
    c = 1, 2 and so on.

    Args:
        low: Value at step 0, >= 0.
        high: Value at step `half_cycle`, at least `low`.
        half_cycle: Number of updates from `low` to `high`, an integer >= 1. The paper advises 2 to
            10 epochs.
        shape: How the height of cycles changes. `"triangular"`: scale is 1. `"triangular2"`: scale
            is 2^(1 - c). `"exp_range"`: scale is gamma^t.
        gamma: Factor of each update on the height, in (0, 1], for `"exp_range"`; None otherwise.

    Raises:
        ValueError: If an argument is out of range, or if `gamma` is missing or not used.

    Example:
        >>> kattn.schedules.Cyclical(0.5, 1.0, 4, shape="triangular2")([0, 2, 4, 8, 12])
        array([0.5 , 0.75, 1.  , 0.5 , 0.75])

    Reference:
        Smith 2017, sec. 3.1 and 3.2, https://arxiv.org/abs/1506.01186
    """

    low: float
    high: float
    half_cycle: int
    _: dataclasses.KW_ONLY
    shape: str = "triangular"
    gamma: float | None = None

    def check(self):
        check_rates(low=self.low, high=self.high)
        check_order(low=self.low, high=self.high)
        check_integers(1, half_cycle=self.half_cycle)
        check_choice(SHAPES, shape=self.shape)
        if (self.shape == "exp_range") != (self.gamma is not None):
            raise error(
                "`gamma` must be given for shape='exp_range', and for no other shape",
                shape=self.shape,
                gamma=self.gamma,
            )
        if self.gamma is not None:
            check_factors(gamma=self.gamma)

    def value(self, t, xp):
        count = whole_cycles(t, 2 * self.half_cycle, xp)
        from_top = xp.abs(t - count * (2 * self.half_cycle) - self.half_cycle)
        height = 1.0 - fraction(from_top, self.half_cycle, xp)
        return between(self.low, self.high, height * self._scale(t, count, xp))

    def _scale(self, t, count, xp):
        if self.shape == "triangular2":
            return 0.5**count
        return 1.0 if self.gamma is None else xp.exp(math.log(self.gamma) * t)
