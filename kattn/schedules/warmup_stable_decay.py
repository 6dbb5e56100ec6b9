"""A schedule whose middle part may have any length (MiniCPM; Hu et al., 2024)."""

import dataclasses
import math

import keras

from kattn.arguments import check_choice, check_integers, check_positive, check_rates, error
from kattn.schedules.curves import between, fraction, half_wave
from kattn.schedules.schedule import Schedule

SHAPES = ("linear", "sqrt", "cosine", "square", "exponential")


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Rise linearly to `peak`, stay there, then decay to `end`.

    The value begins at peak / start_divisor. At the share u of the decay it is
    end + (peak - end) c(u), where c depends on `shape`: 1 - u for `"linear"`, 1 - sqrt(u) for
    `"sqrt"`, (1 + cos(pi u)) / 2 for `"cosine"`, 1 - u^2 for `"square"`. For `"exponential"` it is
    peak (end / peak)^u. As the middle part may have any length, one long training can be decayed
    from several of its steps.

    Args:
        peak: Highest value, above 0.
        steps: Number of updates until `end`, an integer >= 1.
        warmup_steps: Number of updates of the rise at the beginning, an integer >= 0.
        decay_steps: Number of updates of the decay at the end, an integer >= 1. The papers use 10
            to 20 % of `steps`.
        shape: Curve of the decay: "linear", "sqrt", "cosine", "square" or "exponential".
        start_divisor: The value at step 0 is peak / start_divisor; above 0.
        end: Value from step `steps` on, >= 0, and above 0 for `"exponential"`.

    Raises:
        ValueError: If an argument is out of range, or warm-up and decay are longer than `steps`.

    Example:
        >>> schedule = kattn.schedules.WarmupStableDecay(1.0, 10, warmup_steps=2, decay_steps=4)
        >>> schedule([1, 2, 6, 8, 10])
        array([0.505, 1.   , 1.   , 0.5  , 0.   ])

    Reference:
        Hägele et al. 2024, sec. 3 and 4, https://arxiv.org/abs/2405.18392, where `"sqrt"` is
        best; Hu et al. 2024, sec. 4.2, https://arxiv.org/abs/2404.06395, for `"exponential"`.
        `start_divisor` is from the code of the former,
        https://github.com/epfml/schedules-and-scaling
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
        check_integers(1, steps=self.steps, decay_steps=self.decay_steps)
        check_integers(0, warmup_steps=self.warmup_steps)
        check_rates(end=self.end)
        check_choice(SHAPES, shape=self.shape)
        if self.warmup_steps + self.decay_steps > self.steps:
            raise error(
                "`warmup_steps` and `decay_steps` must be at most `steps` together",
                warmup_steps=self.warmup_steps,
                decay_steps=self.decay_steps,
                steps=self.steps,
            )
        if self.shape == "exponential" and self.end == 0:
            raise error("`end` must be above 0 for shape='exponential'", end=self.end)

    def value(self, t, xp):
        share = fraction(t, max(self.warmup_steps, 1), xp)
        rising = between(self.peak / self.start_divisor, self.peak, share)
        u = fraction(t - (self.steps - self.decay_steps), self.decay_steps, xp)
        return xp.where(t < self.warmup_steps, rising, self._decay(u, xp))

    def _decay(self, u, xp):
        """The value at the share u of the decay; u is 0 before it."""
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
