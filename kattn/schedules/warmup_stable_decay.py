"""A schedule whose middle has any length: one training serves many (MiniCPM; Hu et al., 2024)."""

import dataclasses
import math

import keras

from kattn.schedules.arguments import check_counts, check_positive, check_rates, check_shape
from kattn.schedules.curves import between, fraction, half_wave
from kattn.schedules.schedule import Schedule

SHAPES = ("linear", "sqrt", "cosine", "square", "exponential")


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Linear from peak / start_divisor to `peak`, then `peak`, then down to `end` in a curve.

    At a share u of the decay the value is end + (peak - end) c(u), where c is, by `shape`:
    `"linear"` 1 - u, `"sqrt"` 1 - sqrt(u), `"cosine"` (1 + cos(pi u)) / 2, `"square"` 1 - u^2;
    for `"exponential"` it is peak (end / peak)^u.

    Args:
        peak: The highest value, above 0.
        steps: Updates until `end`, an integer >= 1.
        warmup_steps: The first so many of them go up; 0 for none.
        decay_steps: The last so many go down, an integer >= 1; 10 to 20 % of `steps` in the papers.
        shape: Of the decay.
        start_divisor: Of `peak` at step 0, above 0.
        end: The value from `steps` on, >= 0, and above 0 for `"exponential"`.

    Raises:
        ValueError: For arguments out of range, or if warm-up and decay are longer than `steps`.

    Example:
        >>> schedule = kattn.schedules.WarmupStableDecay(1.0, 10, warmup_steps=2, decay_steps=4)
        >>> schedule([1, 2, 6, 8, 10])
        array([0.505, 1.   , 1.   , 0.5  , 0.   ])

    Reference:
        Hägele et al. 2024, sec. 3 and 4, https://arxiv.org/abs/2405.18392, whose best shape is
        `"sqrt"`; Hu et al. 2024, sec. 4.2, https://arxiv.org/abs/2404.06395, exponential.
        `start_divisor` is that of the former's code, https://github.com/epfml/schedules-and-scaling
    """

    peak: float
    steps: int
    _: dataclasses.KW_ONLY
    warmup_steps: int
    decay_steps: int
    shape: str = "linear"
    start_divisor: float = 100.0
    end: float = 0.0

    def check(self):
        check_positive(peak=self.peak, start_divisor=self.start_divisor)
        check_counts(1, steps=self.steps, decay_steps=self.decay_steps)
        check_counts(0, warmup_steps=self.warmup_steps)
        check_rates(end=self.end)
        check_shape(self.shape, SHAPES)
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                "`warmup_steps` and `decay_steps` must be at most `steps` together; received: "
                f"warmup_steps={self.warmup_steps}, decay_steps={self.decay_steps}, "
                f"steps={self.steps}"
            )
        if self.shape == "exponential" and self.end == 0:
            raise ValueError(
                f"shape='exponential' needs an `end` above 0; received: end={self.end}"
            )

    def value(self, t, xp):
        share = fraction(t, max(self.warmup_steps, 1), xp)
        rising = between(self.peak / self.start_divisor, self.peak, share)
        u = fraction(t - (self.steps - self.decay_steps), self.decay_steps, xp)
        return xp.where(t < self.warmup_steps, rising, self._decay(u, xp))

    def _decay(self, u, xp):
        """The value at a share u of the decay, which is 0 before it."""
        if self.shape == "exponential":
            falling = self.peak * xp.exp(math.log(self.end / self.peak) * u)
            return xp.where(u < 1.0, falling, self.end + 0.0 * u)
        share = {
            "linear": lambda: u,
            "sqrt": lambda: xp.sqrt(u),
            "cosine": lambda: half_wave(u, xp),
            "square": lambda: u * u,
        }[self.shape]()
        return between(self.peak, self.end, share)
