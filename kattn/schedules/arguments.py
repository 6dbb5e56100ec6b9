"""What the arguments of a schedule must be."""

import itertools
import math


def check_rates(**values):
    """Raises ValueError unless all are finite numbers >= 0."""
    _check(values, "a finite number >= 0", lambda x: x >= 0)


def check_positive(**values):
    """Raises ValueError unless all are finite numbers above 0."""
    _check(values, "a finite number above 0", lambda x: x > 0)


def check_fractions(**values):
    """Raises ValueError unless all are in (0, 1)."""
    _check(values, "a fraction in (0, 1)", lambda x: 0 < x < 1)


def check_factors(**values):
    """Raises ValueError unless all are in (0, 1]."""
    _check(values, "a factor in (0, 1]", lambda x: 0 < x <= 1)


def check_counts(least, /, **values):
    """Raises ValueError unless all are integers >= `least`."""
    _check(values, f"an integer >= {least}", lambda x: isinstance(x, int) and x >= least)


def check_order(**values):
    """Raises ValueError unless the first of two numbers is at most the second."""
    (lower, low), (upper, high) = values.items()
    if low > high:
        raise ValueError(
            f"`{lower}` must be at most `{upper}`; received: {lower}={low}, {upper}={high}"
        )


def check_shape(shape, known):
    """Raises ValueError unless the shape of a curve is one of those known."""
    if shape not in known:
        raise ValueError(f"`shape` must be one of {', '.join(known)}; received: shape={shape!r}")


def check_boundaries(boundaries):
    """Raises ValueError unless these are steps >= 1, each above the one before."""
    are_steps = isinstance(boundaries, tuple) and all(
        isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in boundaries
    )
    if not are_steps or any(b <= a for a, b in itertools.pairwise(boundaries)):
        raise ValueError(
            "`boundaries` must be integers >= 1, each above the one before; "
            f"received: boundaries={boundaries!r}"
        )


def _check(values, rule, holds):
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not holds(value):
            raise ValueError(f"`{name}` must be {rule}; received: {name}={value!r}")
