"""Schedules that fall as 1 / sqrt(t), and need not know where training ends."""

import dataclasses

import keras

from kattn.schedules.arguments import check_counts, check_positive, check_rates
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """start sqrt(steps / max(t, steps)): `start` up to `steps`, then as 1 / sqrt(t).

    Args:
        start: The value up to step `steps`, >= 0.
        steps: An integer >= 1.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.InverseSquareRoot(1.0, 100)(400)
        0.5

    Reference:
        Raffel et al. 2019, sec. 3.1.2, 1 / sqrt(max(n, k)), https://arxiv.org/abs/1910.10683, whose
        height is always 1 / sqrt(k); Zhai et al. 2021, sec. 3.5, https://arxiv.org/abs/2106.04560
    """

    start: float
    steps: int

    def check(self):
        check_rates(start=self.start)
        check_counts(1, steps=self.steps)

    def value(self, t, xp):
        return self.start * xp.sqrt(self.steps / xp.maximum(t, float(self.steps)))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Noam(Schedule):
    """scale width^-0.5 min(n^-0.5, n warmup_steps^-1.5), where n = t + 1.

    Args:
        width: Of the model, d_model: an integer >= 1.
        warmup_steps: The n of the highest value, which is scale / sqrt(width warmup_steps): an
            integer >= 1.
        scale: Factor of it all, above 0.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> kattn.schedules.Noam(16, 25)(24)
        0.05

    Reference:
        Vaswani et al. 2017, sec. 5.3, eq. 3, https://arxiv.org/abs/1706.03762, whose step_num,
        counted from 1, is n; there is no `scale`.
    """

    width: int
    warmup_steps: int
    _: dataclasses.KW_ONLY
    scale: float = 1.0

    def check(self):
        check_counts(1, width=self.width, warmup_steps=self.warmup_steps)
        check_positive(scale=self.scale)

    def value(self, t, xp):
        n = t + 1.0
        lower = xp.minimum(1.0 / xp.sqrt(n), n * self.warmup_steps**-1.5)
        return self.scale * self.width**-0.5 * lower
