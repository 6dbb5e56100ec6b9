"""One cycle of the learning rate for a whole training, and the opposite cycle of the momentum."""

import dataclasses

import keras

from kattn.arguments import (
    check_integers,
    check_open_fractions,
    check_order,
    check_positive,
    check_rates,
    error,
)
from kattn.schedules.curves import between, fraction, half_wave
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """Rise to `peak` along half a cosine wave, then fall almost to 0 along another.

    Args:
        peak: Highest value, at step warmup * steps, above 0.
        steps: Number of updates of the training, an integer >= 1. From there on the value is
            peak / start_divisor / end_divisor.
        warmup: Fraction of `steps` in which the value rises, in (0, 1).
        start_divisor: The value at step 0 is peak / start_divisor; above 0.
        end_divisor: The last value is the value at step 0 / end_divisor; above 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = kattn.schedules.OneCycle(1.0, 10, warmup=0.5, start_divisor=4)
        >>> schedule([0, 5, 10])
        array([2.5e-01, 1.0e+00, 2.5e-05])
        >>> schedule.momentum()([0, 5, 10])
        array([0.95, 0.85, 0.95])

    Reference:
        fastai's `fit_one_cycle`, https://docs.fast.ai/callback.schedule.html (Howard & Gugger 2020,
        https://arxiv.org/abs/2002.04688), where `warmup` is 0.25 and the last value is peak / 1e5.
        The defaults are those of torch's `OneCycleLR`, which ends each wave one update earlier. The
        cycle of Smith & Topin is `SmithOneCycle`.
    """

    peak: float
    steps: int
    _: dataclasses.KW_ONLY
    warmup: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4

    def check(self):
        check_positive(
            peak=self.peak, start_divisor=self.start_divisor, end_divisor=self.end_divisor
        )
        check_integers(1, steps=self.steps)
        check_open_fractions(warmup=self.warmup)

    def value(self, t, xp):
        start = self.peak / self.start_divisor
        ends = (start, self.peak, start / self.end_divisor)
        return _two_waves(t, xp, ends, self.steps, self.warmup)

    def momentum(self, high=0.95, low=0.85):
        """Return the opposite schedule for the momentum: lowest where the learning rate is highest.

        Args:
            high: Momentum at the beginning and at the end, in (0, 1).
            low: Momentum at the peak of the learning rate, in (0, 1), at most `high`.

        Returns:
            A `OneCycleMomentum` schedule.
        """
        return OneCycleMomentum(high, low, self.steps, warmup=self.warmup)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class OneCycleMomentum(Schedule):
    """Fall from `high` to `low` along half a cosine wave, and rise back along another.

    Args:
        high: Value at step 0 and from step `steps` on, in (0, 1).
        low: Value at step warmup * steps, in (0, 1), at most `high`.
        steps: Number of updates of the training, an integer >= 1.
        warmup: Fraction of `steps` in which the value falls, in (0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.OneCycleMomentum(0.75, 0.5, 10, warmup=0.5)([0, 5, 10])
        array([0.75, 0.5 , 0.75])

    Reference:
        Smith 2018, sec. 4.3, https://arxiv.org/abs/1803.09820, with the waves of `OneCycle`
    """

    high: float
    low: float
    steps: int
    _: dataclasses.KW_ONLY
    warmup: float = 0.3

    def check(self):
        check_open_fractions(high=self.high, low=self.low, warmup=self.warmup)
        check_order(low=self.low, high=self.high)
        check_integers(1, steps=self.steps)

    def value(self, t, xp):
        return _two_waves(t, xp, (self.high, self.low, self.high), self.steps, self.warmup)


def _two_waves(t, xp, ends, steps, warmup):
    """Half a wave from the first to the second of three values, and another to the third."""
    start, middle, end = ends
    turn = warmup * steps
    first = between(start, middle, half_wave(fraction(t, turn, xp), xp))
    second = between(end, middle, half_wave(fraction(steps - t, steps - turn, xp), xp))
    return xp.where(t < turn, first, second)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class SmithOneCycle(Schedule):
    """Rise linearly from `low` to `peak`, fall back, then fall linearly to low / end_divisor.

    Args:
        low: Value at steps 0 and 2 * half_cycle, >= 0.
        peak: Value at step `half_cycle`, at least `low`.
        half_cycle: Number of updates of the rise, and of the fall back to `low`; an integer >= 1.
        steps: Number of updates of the training, an integer above 2 * half_cycle.
        end_divisor: The value from step `steps` on is low / end_divisor; above 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.SmithOneCycle(0.5, 1.0, 4, steps=10)([0, 2, 4, 8, 10])
        array([0.5  , 0.75 , 1.   , 0.5  , 0.005])

    Reference:
        Smith & Topin 2018, sec. 3, https://arxiv.org/abs/1708.07120, and Smith 2018, sec. 4.1,
        https://arxiv.org/abs/1803.09820, where the value falls by "several orders of magnitude"
        after the cycle. The papers do not say how; here it falls linearly, and by 100.
    """

    low: float
    peak: float
    half_cycle: int
    _: dataclasses.KW_ONLY
    steps: int
    end_divisor: float = 100.0

    def check(self):
        check_rates(low=self.low, peak=self.peak)
        check_order(low=self.low, peak=self.peak)
        check_integers(1, half_cycle=self.half_cycle, steps=self.steps)
        check_positive(end_divisor=self.end_divisor)
        if self.steps <= 2 * self.half_cycle:
            raise error(
                "`steps` must be above twice `half_cycle`",
                steps=self.steps,
                half_cycle=self.half_cycle,
            )

    def value(self, t, xp):
        after = t - 2 * self.half_cycle
        share = fraction(after, self.steps - 2 * self.half_cycle, xp)
        last = between(self.low, self.low / self.end_divisor, share)
        return xp.where(after < 0, _triangle(t, xp, self.low, self.peak, self.half_cycle), last)

    def momentum(self, high=0.95, low=0.85):
        """Return the opposite schedule for the momentum: lowest where the learning rate is highest.

        Args:
            high: Momentum at step 0 and after the cycle, in (0, 1).
            low: Momentum at the peak of the learning rate, in (0, 1), at most `high`.

        Returns:
            A `SmithOneCycleMomentum` schedule.
        """
        return SmithOneCycleMomentum(high, low, self.half_cycle)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class SmithOneCycleMomentum(Schedule):
    """Fall linearly from `high` to `low`, rise back, then stay at `high`.

    Args:
        high: Value at step 0 and from step 2 * half_cycle on, in (0, 1).
        low: Value at step `half_cycle`, in (0, 1), at most `high`.
        half_cycle: Number of updates of the fall, and of the rise; an integer >= 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.SmithOneCycleMomentum(0.75, 0.5, 4)([0, 4, 6, 8])
        array([0.75 , 0.5  , 0.625, 0.75 ])

    Reference:
        Smith 2018, sec. 4.3, https://arxiv.org/abs/1803.09820
    """

    high: float
    low: float
    half_cycle: int

    def check(self):
        check_open_fractions(high=self.high, low=self.low)
        check_order(low=self.low, high=self.high)
        check_integers(1, half_cycle=self.half_cycle)

    def value(self, t, xp):
        return _triangle(t, xp, self.high, self.low, self.half_cycle)


def _triangle(t, xp, ends, middle, half_cycle):
    """Linear from `ends` to `middle` in `half_cycle` steps and back in as many, then `ends`."""
    return between(middle, ends, fraction(xp.abs(t - half_cycle), half_cycle, xp))
