"""Checks of arguments. Every message has one form: "`name` must be ...; received: name=value"."""

import math
import numbers
import os
import pathlib

import keras


def error(rule, /, **values):
    """The ValueError for a broken rule: the rule, then each value involved as `name=value`.

    Args:
        rule: Sentence that says what must hold, without a full stop.
        **values: The arguments involved. Of an array or a tensor its shape is given.

    Returns:
        A ValueError, to be raised by the caller.

    Example:
        >>> raise error("`num_heads` must divide the width", num_heads=3, width=8)
        Traceback (most recent call last):
        ValueError: `num_heads` must divide the width; received: num_heads=3, width=8
    """
    described = ", ".join(_describe(name, value) for name, value in values.items())
    return ValueError(f"{rule}; received: {described}")


def infers_shapes():
    """Whether Keras runs a call only to learn the shapes of its outputs.

    The tensors are stand-ins then. When Keras builds a subclassed model that it loads, all of them
    are float32, whatever the model is called with; so a check of a dtype must let them pass.

    Returns:
        A bool.
    """
    # The public way to the state that `SymbolicScope` sets: a scope knows the one around it.
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def check_integers(least, /, **values):
    """Raises ValueError unless all are integers >= `least`."""
    for name, value in values.items():
        if not is_integer(value) or value < least:
            raise error(f"`{name}` must be an integer >= {least}", **{name: value})


def check_optional_integers(least, /, **values):
    """Raises ValueError unless all are None or integers >= `least`."""
    check_integers(least, **{name: x for name, x in values.items() if x is not None})


def check_rates(**values):
    """Raises ValueError unless all are finite numbers >= 0."""
    check_numbers("a finite number >= 0", lambda x: x >= 0, **values)


def check_positive(**values):
    """Raises ValueError unless all are finite numbers above 0."""
    check_numbers("a finite number above 0", lambda x: x > 0, **values)


def check_optional_positive(**values):
    """Raises ValueError unless all are None or finite numbers above 0."""
    check_positive(**{name: x for name, x in values.items() if x is not None})


def check_fractions(**values):
    """Raises ValueError unless all are in [0, 1), as the rate of a dropout must be."""
    check_numbers("a fraction in [0, 1)", lambda x: 0 <= x < 1, **values)


def check_open_fractions(**values):
    """Raises ValueError unless all are in (0, 1), as a share of something must be."""
    check_numbers("a fraction in (0, 1)", lambda x: 0 < x < 1, **values)


def check_factors(**values):
    """Raises ValueError unless all are in (0, 1], as the factor of a decay must be."""
    check_numbers("a factor in (0, 1]", lambda x: 0 < x <= 1, **values)


def check_order(**values):
    """Raises ValueError unless the first of two numbers is at most the second."""
    (lower, low), (upper, high) = values.items()
    if low > high:
        raise error(f"`{lower}` must be at most `{upper}`", **values)


def check_numbers(rule, holds, /, **values):
    """Raises ValueError unless all are finite numbers for which `holds`; `rule` says it in words.

    Args:
        rule: What a value must be, as in "a factor in (0, 1]".
        holds: Function of a number that returns whether it fulfils the rule.
        **values: The arguments to check.

    Raises:
        ValueError: If a value is not a number, not finite, or does not fulfil the rule.

    Example:
        >>> check_numbers("a factor in (0, 1]", lambda x: 0 < x <= 1, decay=0.9)
    """
    for name, value in values.items():
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not holds(value):
            raise error(f"`{name}` must be {rule}", **{name: value})


def check_choice(choices, /, **values):
    """Raises ValueError unless all are among `choices`."""
    for name, value in values.items():
        if value not in choices:
            known = ", ".join(map(str, choices))
            raise error(f"`{name}` must be one of {known}", **{name: value})


def local_path(**values):
    """The one value as a `pathlib.Path`, in which `~` is the user's folder.

    Raises ValueError unless it is a path, of this machine: an address such as gs://bucket/run would
    become a folder of that name here.
    """
    ((name, value),) = values.items()
    if not isinstance(value, (str, os.PathLike)):
        raise error(f"`{name}` must be a path", **values)
    if "://" in os.fspath(value):
        raise error(f"`{name}` must be a path of this machine, not an address", **values)
    return pathlib.Path(value).expanduser()


def is_integer(value):
    """Whether the value is an integer, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(name, value):
    shape = getattr(value, "shape", None)
    return f"{name}={value!r}" if shape is None else f"{name}.shape={tuple(shape)}"
