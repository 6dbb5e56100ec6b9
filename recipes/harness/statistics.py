"""What can be said of a few seeds: means, spreads and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True)
class Score:
    """A number that the test of a model gives, and how a report shows it."""

    key: str  # its name in the results of the test
    title: str  # for example "test accuracy"
    is_percentage: bool = False  # a fraction, shown as percentage; differences are in points
    digits: int = 4  # after the point

    @property
    def heading(self) -> str:
        """The title as heading of a column, with its unit."""
        return self.title[0].upper() + self.title[1:] + (", %" if self.is_percentage else "")

    @property
    def scale(self) -> int:
        """Factor between the result of the test and what is shown."""
        return 100 if self.is_percentage else 1


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for a single value)."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread


def with_spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation in words; for a single value that alone."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


def paired_interval(
    differences: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Student's t interval of the mean of paired differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    mean, spread = mean_and_spread(differences)
    # Of Student's t. `scipy.stats` has it, too, and takes half a second to be imported.
    quantile = special.stdtrit(len(differences) - 1, (1 + confidence) / 2)
    half = float(quantile) * spread / math.sqrt(len(differences))
    return mean - half, mean + half


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference to a baseline, paired by seed, with its 95 % interval."""

    mean: float
    interval: tuple[float, float] | None  # None for one seed

    @classmethod
    def between(cls, values: Sequence[float], baseline: Sequence[float]) -> "PairedDifference":
        """Compare the results of two variants, each with one value for each seed."""
        differences = [value - other for value, other in zip(values, baseline, strict=True)]
        return cls(statistics.fmean(differences), paired_interval(differences))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.4f}"
        low, high = self.interval
        return f"{self.mean:+.4f} [{low:+.4f}, {high:+.4f}]" + (" *" if self.is_clear else "")


def one_difference(
    what: str,
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    unit: str = "",
    digits: int = 2,
) -> str:
    """One sentence that says how far a variant is from the baseline.

    Args:
        what: Beginning of the sentence, for example "With self-attention the test accuracy".
        values: Results of the variant, one for each seed.
        baseline: Results of the baseline for the same seeds.
        unit: Unit of the results, for example "points".
        digits: Number of digits after the point.
    """
    difference = PairedDifference.between(values, baseline)
    word = "higher" if difference.mean >= 0 else "lower"
    sentence = " ".join([what, "is", f"{abs(difference.mean):.{digits}f}", *unit.split(), word])
    if difference.interval is None:
        return f"{sentence} (one seed: nothing can be said about chance)."
    low, high = difference.interval
    told = "which leaves 0 out" if difference.is_clear else "which includes 0: no clear difference"
    return (
        f"{sentence} (95 % confidence interval of the paired difference over "
        f"{len(values)} seeds: {low:+.{digits}f} to {high:+.{digits}f}, {told})."
    )


def clear_differences(
    what: str, baseline: str, values: Mapping[str, Sequence[float]], titles: Mapping[str, str]
) -> str:
    """One or two sentences on which of many variants differ from the baseline.

    Args:
        what: What was measured, for example "Test loss on digits". Lower is better.
        baseline: Name of the variant that the others are compared with.
        values: Results by name of the variant, one for each seed.
        titles: Titles of the variants by name.
    """
    others = {
        name: PairedDifference.between(each, values[baseline])
        for name, each in values.items()
        if name != baseline
    }
    if not others:
        return f"{what}: nothing was compared with {titles[baseline]}."
    if any(each.interval is None for each in others.values()):
        return f"{what}: one seed, so nothing can be said about chance."
    clear = sorted(
        ((each.mean, titles[name]) for name, each in others.items() if each.is_clear),
        key=lambda pair: pair[0],
    )
    lower = ", ".join(f"{title} ({mean:+.3f})" for mean, title in clear if mean < 0)
    higher = ", ".join(f"{title} ({mean:+.3f})" for mean, title in clear if mean >= 0)
    return (
        f"{what}, against {titles[baseline]}: clearly lower for {lower or 'none'}; clearly higher "
        f"for {higher or 'none'}. So the 95 % intervals of {len(clear)} of {len(others)} "
        f"differences leave 0 out; by chance alone {0.05 * len(others):.1f} would."
    )
