"""Schedules that fall as a cosine, against the equations."""

import math

import numpy as np
import pytest

from kattn.schedules import Cosine, FlatCosine
from tests.schedule_checks import LARGE, MILLION, Case, check_compiled, check_schedule


def cosine(start, end, steps, begin=0.0):
    """Loshchilov & Hutter 2017, eq. 5, from step `begin` on."""

    def oracle(t):
        share = min(max((t - begin) / (steps - begin), 0.0), 1.0)
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))

    return oracle


CASES = {
    "cosine": Case(Cosine(0.5, 0.1, 49), cosine(0.5, 0.1, 49), {0: 0.5, 49: 0.1, 10**9: 0.1}),
    "cosine, up": Case(Cosine(0.0, 0.75, 6), cosine(0.0, 0.75, 6), {0: 0.0, 6: 0.75}),
    "cosine, long": Case(
        Cosine(0.7, 0.1, 1_000_003), cosine(0.7, 0.1, 1_000_003), {0: 0.7, 1_000_003: 0.1}, LARGE
    ),
    "flat cosine": Case(
        FlatCosine(0.7, 40), cosine(0.7, 0.0, 40, 30), {0: 0.7, 30: 0.7, 40: 0.0, 10**9: 0.0}
    ),
    "flat cosine, between steps": Case(
        FlatCosine(0.5, 47, flat=0.3, end=0.2), cosine(0.5, 0.2, 47, 14.1), {14: 0.5, 47: 0.2}
    ),
    "flat cosine, long": Case(
        FlatCosine(0.7, MILLION, flat=0.7, end=0.2),
        cosine(0.7, 0.2, MILLION, 700_000),
        {0: 0.7, 700_000: 0.7, MILLION: 0.2},
        LARGE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


@pytest.mark.parametrize(
    ("schedule", "step", "value"),
    [
        (Cosine(1.0, 0.5, 10), 5, 0.75),
        (Cosine(0.0, 0.75, 6), 2, 0.1875),
        (Cosine(0.5, 0.0, 4), 1, 0.25 + 0.125 * math.sqrt(2)),
        (FlatCosine(1.0, 40), 35, 0.5),
        (FlatCosine(0.5, 30, flat=0.6, end=0.25), 26, 0.3125),
    ],
    ids=str,
)
def test_values_by_hand(schedule, step, value):
    assert schedule(step) == pytest.approx(value, rel=1e-14)


def test_monotone():
    assert (np.diff(Cosine(0.7, 0.1, 1000)(np.arange(1200))) <= 0).all()
    assert (np.diff(Cosine(0.1, 0.7, 1000)(np.arange(1200))) >= 0).all()
    found = FlatCosine(0.7, 1000)(np.arange(1200))
    assert (np.diff(found[:751]) == 0).all()
    assert (np.diff(found[750:1001]) < 0).all()


BAD = {
    "start": (lambda: Cosine(-1, 0, 2), "`start` must be a finite number >= 0.*start=-1"),
    "end": (lambda: Cosine(1, -2.0, 2), "`end` must be a finite number >= 0.*end=-2.0"),
    "steps": (lambda: Cosine(1, 0, 0), "`steps` must be an integer >= 1.*steps=0"),
    "flat start": (lambda: FlatCosine(-1, 2), "`start` must be a finite number >= 0.*start=-1"),
    "flat end": (lambda: FlatCosine(1, 2, end=-1), "`end` must be a finite number >= 0.*end=-1"),
    "flat steps": (lambda: FlatCosine(1, 0), "`steps` must be an integer >= 1.*steps=0"),
    "flat": (lambda: FlatCosine(1, 2, flat=1.0), r"`flat` must be a fraction in \(0, 1\).*=1.0"),
    "flat 0": (lambda: FlatCosine(1, 2, flat=0), r"`flat` must be a fraction in \(0, 1\).*flat=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
