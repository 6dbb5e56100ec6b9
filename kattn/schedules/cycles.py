"""Schedules that come back to where they began, again and again."""

import dataclasses
import math

import keras
import numpy as np

from kattn.schedules.arguments import (
    check_counts,
    check_factors,
    check_order,
    check_positive,
    check_rates,
    check_shape,
)
from kattn.schedules.curves import between, fraction, half_wave, whole_cycles
from kattn.schedules.schedule import Schedule

SHAPES = ("triangular", "triangular2", "exp_range")
SLOWEST = 1.01  # the least growth: some 1700 cycles until the last step
LAST = 2**31  # cycles that grow begin up to this step


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class WarmRestarts(Schedule):
    """end + (start decay^i - end) (1 + cos(pi u)) / 2, at a share u of cycle i = 0, 1, ...

    Cycle i has steps * growth^i updates, rounded to a whole number. At its first one u is 0.

    Args:
        start: The value at step 0, >= 0.
        steps: Updates of the first cycle, an integer >= 1.
        end: Where each cycle goes and which it does not reach, >= 0.
        growth: Factor on the length of a cycle, T_mult: 1, or at least 1.01.
        decay: Factor on `start` with each restart, above 0. Where `start` falls below `end`, cycles
            go upwards.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.WarmRestarts(1.0, 10, growth=2.0, decay=0.5)([0, 5, 10, 20, 30])
        array([1.  , 0.5 , 0.5 , 0.25, 0.25])

    Reference:
        Loshchilov & Hutter 2017, eq. 5, https://arxiv.org/abs/1608.03983. T_cur counts updates here
        and fractions of epochs there, where lengths are not rounded.
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
        check_counts(1, steps=self.steps)
        check_positive(growth=self.growth, decay=self.decay)
        if self.growth != 1.0 and self.growth < SLOWEST:
            raise ValueError(
                f"`growth` must be 1 or at least {SLOWEST}; received: growth={self.growth}"
            )

    def value(self, t, xp):
        count, begin, length = self._cycle(t, xp)
        height = self.start * xp.exp(xp.multiply(math.log(self.decay), count))
        return between(height, self.end, half_wave(fraction(t - begin, length, xp), xp))

    def _cycle(self, t, xp):
        """How many cycles are over at step t, where the next begins and its length."""
        if self.growth == 1:
            count = whole_cycles(t, self.steps, xp)
            return count, count * self.steps, self.steps
        # By whole steps, which are exact: in float32 log(t) is wrong for steps near a restart.
        begins = xp.array(self._begins, dtype=t.dtype)
        places = xp.searchsorted(begins[1:-1], xp.reshape(t, (-1,)), side="right")
        count = xp.reshape(places, xp.shape(t))
        begin = xp.take(begins, count)
        return count, begin, xp.take(begins, count + 1) - begin


def _begins(steps, growth):
    """The first step of each cycle that grows, until one is beyond `LAST`.

    An array, as TorchDynamo takes a minute for a tuple of so many numbers.
    """
    found = [0, steps]
    while growth > 1 and found[-1] < LAST:
        found.append(found[-1] + round(steps * growth ** (len(found) - 1)))
    return np.array(found, np.float64)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Cyclical(Schedule):
    """low + (high - low) max(0, 1 - x) scale, x = |t / half_cycle - 2c + 1|, in cycle c = 1, 2, ...

    Args:
        low: The value at step 0, >= 0.
        high: The value at step `half_cycle`, at least `low`.
        half_cycle: Updates from one to the other; the paper advises 2 to 10 epochs of them.
        shape: `"triangular"`, scale 1; `"triangular2"`, scale 2^(1 - c); `"exp_range"`, scale
            gamma^t.
        gamma: In (0, 1], for `"exp_range"` only.

    Raises:
        ValueError: For arguments out of range, or a `gamma` that is missing or of no use.

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
        check_counts(1, half_cycle=self.half_cycle)
        check_shape(self.shape, SHAPES)
        if (self.shape == "exp_range") != (self.gamma is not None):
            raise ValueError(
                "shape='exp_range' needs a `gamma`, and no other shape has one; "
                f"received: shape={self.shape!r}, gamma={self.gamma}"
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
