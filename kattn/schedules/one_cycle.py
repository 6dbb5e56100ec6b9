"""One cycle of the learning rate for a whole training, and of the momentum, mirrored."""

import dataclasses

import keras

from kattn.schedules.arguments import (
    check_counts,
    check_fractions,
    check_order,
    check_positive,
    check_rates,
)
from kattn.schedules.curves import between, fraction, half_wave
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """Half a cosine wave from peak / start_divisor up to `peak`, and one down to almost 0.

    Args:
        peak: The highest value, above 0, at step warmup * steps.
        steps: Updates of the training, an integer >= 1. From there on the value is
            peak / start_divisor / end_divisor.
        warmup: Fraction of `steps` on the way up, in (0, 1).
        start_divisor: Of `peak` at step 0, above 0.
        end_divisor: Of the value at step 0, at the end; above 0.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> schedule = kattn.schedules.OneCycle(1.0, 10, warmup=0.5, start_divisor=4)
        >>> schedule([0, 5, 10])
        array([2.5e-01, 1.0e+00, 2.5e-05])
        >>> schedule.momentum()([0, 5, 10])
        array([0.95, 0.85, 0.95])

    Reference:
        fastai's `fit_one_cycle`, https://docs.fast.ai/callback.schedule.html (Howard & Gugger 2020,
        https://arxiv.org/abs/2002.04688), where `warmup` is 0.25 and the end peak / 1e5. Defaults
        here are those of torch's `OneCycleLR`, which ends each wave one update earlier. The cycle
        of Smith & Topin is `SmithOneCycle`.
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
        check_counts(1, steps=self.steps)
        check_fractions(warmup=self.warmup)

    def value(self, t, xp):
        start = self.peak / self.start_divisor
        ends = (start, self.peak, start / self.end_divisor)
        return _two_waves(t, xp, ends, self.steps, self.warmup)

    def momentum(self, high=0.95, low=0.85):
        """The schedule of momentum that goes with it: `low` where the learning rate is highest.

        Args:
            high: The value at both ends, in (0, 1).
            low: The value at the peak, in (0, 1), at most `high`.

        Returns:
            A `OneCycleMomentum`.
        """
        return OneCycleMomentum(high, low, self.steps, warmup=self.warmup)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class OneCycleMomentum(Schedule):
    """Half a cosine wave from `high` down to `low`, and one back.

    Args:
        high: The value at step 0 and from `steps` on, in (0, 1).
        low: The value at step warmup * steps, in (0, 1), at most `high`.
        steps: Updates of the training, an integer >= 1.
        warmup: Fraction of `steps` on the way down, in (0, 1).

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.OneCycleMomentum(0.75, 0.5, 10, warmup=0.5)([0, 5, 10])
        array([0.75, 0.5 , 0.75])

    Reference:
        As of `OneCycle`; of the momentum, Smith 2018, sec. 4.3, https://arxiv.org/abs/1803.09820
    """

    high: float
    low: float
    steps: int
    _: dataclasses.KW_ONLY
    warmup: float = 0.3

    def check(self):
        check_fractions(high=self.high, low=self.low, warmup=self.warmup)
        check_order(low=self.low, high=self.high)
        check_counts(1, steps=self.steps)

    def value(self, t, xp):
        return _two_waves(t, xp, (self.high, self.low, self.high), self.steps, self.warmup)


def _two_waves(t, xp, ends, steps, warmup):
    """Half a wave between the first two of three values, and another to the third at `steps`."""
    start, middle, end = ends
    turn = warmup * steps
    first = between(start, middle, half_wave(fraction(t, turn, xp), xp))
    second = between(end, middle, half_wave(fraction(steps - t, steps - turn, xp), xp))
    return xp.where(t < turn, first, second)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class SmithOneCycle(Schedule):
    """Linear from `low` up to `peak`, linear back, then linear to low / end_divisor.

    Args:
        low: The value at steps 0 and 2 * half_cycle, >= 0.
        peak: The value at step `half_cycle`, at least `low`.
        half_cycle: Updates up, and as many down; an integer >= 1.
        steps: Updates of the training, an integer above 2 * half_cycle.
        end_divisor: Of `low` from `steps` on, above 0.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.SmithOneCycle(0.5, 1.0, 4, steps=10)([0, 2, 4, 8, 10])
        array([0.5  , 0.75 , 1.   , 0.5  , 0.005])

    Reference:
        Smith & Topin 2018, sec. 3, https://arxiv.org/abs/1708.07120, and Smith 2018, sec. 4.1,
        https://arxiv.org/abs/1803.09820, where the value falls by "several orders of magnitude"
        after the cycle; that it does so linearly, and by 100, is a choice of ours.
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
        check_counts(1, half_cycle=self.half_cycle, steps=self.steps)
        check_positive(end_divisor=self.end_divisor)
        if self.steps <= 2 * self.half_cycle:
            raise ValueError(
                "`steps` must be above twice `half_cycle`; "
                f"received: steps={self.steps}, half_cycle={self.half_cycle}"
            )

    def value(self, t, xp):
        after = t - 2 * self.half_cycle
        share = fraction(after, self.steps - 2 * self.half_cycle, xp)
        last = between(self.low, self.low / self.end_divisor, share)
        return xp.where(after < 0, _triangle(t, xp, self.low, self.peak, self.half_cycle), last)

    def momentum(self, high=0.95, low=0.85):
        """The schedule of momentum that goes with it: `low` where the learning rate is highest.

        Args:
            high: The value at step 0 and after the cycle, in (0, 1).
            low: The value at the peak, in (0, 1), at most `high`.

        Returns:
            A `SmithOneCycleMomentum`.
        """
        return SmithOneCycleMomentum(high, low, self.half_cycle)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class SmithOneCycleMomentum(Schedule):
    """Linear from `high` down to `low`, linear back, then `high`.

    Args:
        high: The value at step 0 and from step 2 * half_cycle on, in (0, 1).
        low: The value at step `half_cycle`, in (0, 1), at most `high`.
        half_cycle: Updates down, and as many up; an integer >= 1.

    Raises:
        ValueError: For arguments out of range.

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
        check_fractions(high=self.high, low=self.low)
        check_order(low=self.low, high=self.high)
        check_counts(1, half_cycle=self.half_cycle)

    def value(self, t, xp):
        return _triangle(t, xp, self.high, self.low, self.half_cycle)


def _triangle(t, xp, ends, middle, half_cycle):
    """Linear from `ends` to `middle` in `half_cycle` steps, linear back in as many, then `ends`."""
    return between(middle, ends, fraction(xp.abs(t - half_cycle), half_cycle, xp))
