"""Schedules that fall as 1 / sqrt(t), and do not depend on the length of the training."""

import dataclasses

import keras

from kattn.arguments import check_integers, check_positive, check_rates
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """Stay at `start`, then fall as 1 / sqrt(t).

    The value is start sqrt(steps / max(t, steps)).

    Args:
        start: Value up to step `steps`, >= 0.
        steps: Number of updates before the value begins to fall, an integer >= 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.InverseSquareRoot(1.0, 100)(400)
        0.5

    Reference:
        Raffel et al. 2019, sec. 3.1.2, 1 / sqrt(max(n, k)), https://arxiv.org/abs/1910.10683, where
        the first value is always 1 / sqrt(k); Zhai et al. 2021, sec. 3.5,
        https://arxiv.org/abs/2106.04560
    """

    start: float
    steps: int

    def check(self):
        check_rates(start=self.start)
        check_integers(1, steps=self.steps)

    def value(self, t, xp):
        return self.start * xp.sqrt(self.steps / xp.maximum(t, float(self.steps)))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Noam(Schedule):
    """Rise linearly, then fall as 1 / sqrt(t): the schedule of the Transformer paper.

    The value is scale width^-0.5 min(n^-0.5, n warmup_steps^-1.5), where n = t + 1.

    Args:
        width: Width of the model (d_model in the paper), an integer >= 1.
        warmup_steps: Number of updates of the rise, an integer >= 1. The highest value is
            scale / sqrt(width warmup_steps), at n = warmup_steps.
        scale: Factor on all values, above 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> kattn.schedules.Noam(16, 25)(24)
        0.05

    Reference:
        Vaswani et al. 2017, sec. 5.3, eq. 3, https://arxiv.org/abs/1706.03762. n is step_num
        in the paper, which has no `scale`.
    """

    width: int
    warmup_steps: int
    _: dataclasses.KW_ONLY
    scale: float = 1.0

    def check(self):
        check_integers(1, width=self.width, warmup_steps=self.warmup_steps)
        check_positive(scale=self.scale)

    def value(self, t, xp):
        n = t + 1.0
        lower = xp.minimum(1.0 / xp.sqrt(n), n * self.warmup_steps**-1.5)
        return self.scale * self.width**-0.5 * lower
