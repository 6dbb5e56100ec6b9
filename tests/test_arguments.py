"""Checks of arguments: what passes, what does not, and what the message says."""

import math
import re

import keras
import numpy as np
import pytest

from kattn import arguments
from kattn.arguments import infers_shapes
from tests.compute import compiled

GOOD = {
    "integers": lambda: arguments.check_integers(2, num_heads=2, key_dim=7),
    "optional integers": lambda: arguments.check_optional_integers(1, key_dim=None, value_dim=3),
    "rates": lambda: arguments.check_rates(start=0, end=1.5),
    "numbers of NumPy": lambda: arguments.check_rates(start=np.float32(0.5)),
    "positive": lambda: arguments.check_positive(base=1e-9),
    "optional positive": lambda: arguments.check_optional_positive(softcap=None, scale=2),
    "fractions": lambda: arguments.check_fractions(dropout=0, other=0.99),
    "open fractions": lambda: arguments.check_open_fractions(flat=1e-9, warmup=0.999),
    "factors": lambda: arguments.check_factors(decay=1, gamma=0.5),
    "order": lambda: arguments.check_order(low=1, high=1.0),
    "choice": lambda: arguments.check_choice(("a", "b"), mode="b"),
}
BAD = {
    "too small": (
        lambda: arguments.check_integers(2, num_heads=1),
        "`num_heads` must be an integer >= 2; received: num_heads=1",
    ),
    "a bool": (
        lambda: arguments.check_integers(0, num_heads=True),
        "`num_heads` must be an integer >= 0; received: num_heads=True",
    ),
    "a whole float": (
        lambda: arguments.check_integers(0, num_heads=4.0),
        "`num_heads` must be an integer >= 0; received: num_heads=4.0",
    ),
    "none where it is wanted": (
        lambda: arguments.check_integers(1, key_dim=None),
        "`key_dim` must be an integer >= 1; received: key_dim=None",
    ),
    "the second of two": (
        lambda: arguments.check_optional_integers(1, key_dim=None, value_dim=0),
        "`value_dim` must be an integer >= 1; received: value_dim=0",
    ),
    "a negative rate": (
        lambda: arguments.check_rates(end=-1e-9),
        "`end` must be a finite number >= 0; received: end=-1e-09",
    ),
    "no number": (
        lambda: arguments.check_rates(end="1"),
        "`end` must be a finite number >= 0; received: end='1'",
    ),
    "not finite": (
        lambda: arguments.check_rates(end=math.inf),
        "`end` must be a finite number >= 0; received: end=inf",
    ),
    "nan": (
        lambda: arguments.check_fractions(dropout=math.nan),
        "`dropout` must be a fraction in [0, 1); received: dropout=nan",
    ),
    "zero": (
        lambda: arguments.check_optional_positive(softcap=0.0),
        "`softcap` must be a finite number above 0; received: softcap=0.0",
    ),
    "all of it": (
        lambda: arguments.check_fractions(dropout=1.0),
        "`dropout` must be a fraction in [0, 1); received: dropout=1.0",
    ),
    "an array": (
        lambda: arguments.check_rates(end=np.ones(2)),
        "`end` must be a finite number >= 0; received: end.shape=(2,)",
    ),
    "none of it": (
        lambda: arguments.check_open_fractions(flat=0),
        "`flat` must be a fraction in (0, 1); received: flat=0",
    ),
    "all of an open fraction": (
        lambda: arguments.check_open_fractions(flat=1.0),
        "`flat` must be a fraction in (0, 1); received: flat=1.0",
    ),
    "a factor of zero": (
        lambda: arguments.check_factors(decay=0.0),
        "`decay` must be a factor in (0, 1]; received: decay=0.0",
    ),
    "a factor above one": (
        lambda: arguments.check_factors(decay=1.5),
        "`decay` must be a factor in (0, 1]; received: decay=1.5",
    ),
    "wrong order": (
        lambda: arguments.check_order(low=0.5, high=0.1),
        "`low` must be at most `high`; received: low=0.5, high=0.1",
    ),
    "unknown choice": (
        lambda: arguments.check_choice(("a", None), mode="c"),
        "`mode` must be one of a, None; received: mode='c'",
    ),
}


@pytest.mark.parametrize("check", GOOD.values(), ids=GOOD)
def test_what_fits_passes(check):
    check()


@pytest.mark.parametrize(("check", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(check, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check()


def test_an_array_is_told_by_its_shape():
    found = arguments.error("`mask` must be boolean", mask=np.zeros((2, 3)), window=None)
    assert str(found) == "`mask` must be boolean; received: mask.shape=(2, 3), window=None"


def test_stand_ins_are_known_as_such():
    """Where Keras infers shapes, and there alone, also in a compiled function."""
    seen = []

    def note(x):
        seen.append(infers_shapes())
        return x

    keras.ops.copy(note(keras.ops.ones((2,))))
    compiled(note)(keras.ops.ones((2,)))
    assert set(seen) == {False}
    seen.clear()
    keras.layers.Lambda(note)(keras.Input((2,)))
    assert set(seen) == {True}
    assert not infers_shapes()
