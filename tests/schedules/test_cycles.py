"""Restarts and cycles against the papers' equations."""

import bisect
import functools
import math
from fractions import Fraction

import numpy as np
import pytest

from kattn.schedules import Cyclical, WarmRestarts
from tests.schedule_checks import LARGE, Case, check_compiled, check_schedule

LAST = 2**24  # up to here float32 counts steps


@functools.cache
def restarts(steps, growth):
    """The first step of each cycle, until one is beyond the last step."""
    if growth == 1:
        return range(0, LAST + 2 * steps, steps)
    found, length = [0], Fraction(steps)
    while found[-1] < LAST:
        found.append(found[-1] + round(length))
        length = (length * Fraction(str(growth))).limit_denominator(10**30)
    return found


def warm_restarts(start, steps, end=0.0, growth=1, decay=1.0):
    """Loshchilov & Hutter 2017, eq. 5: T_cur since the restart before, T_i the cycle's length."""
    begins = restarts(steps, growth)

    def oracle(t):
        i = bisect.bisect(begins, t) - 1
        share = (t - begins[i]) / (begins[i + 1] - begins[i])
        return end + 0.5 * (start * decay**i - end) * (1 + math.cos(math.pi * share))

    return oracle


def around_restarts(steps, growth):
    """24 restarts, from the first to the last one before step 2^24, and the steps beside them."""
    begins = restarts(steps, growth)
    last = bisect.bisect_left(begins, LAST) - 1
    places = [begins[i] for i in np.linspace(1, last, 24).astype(int)]
    return Case(
        WarmRestarts(0.7, steps, end=0.1, growth=growth),
        warm_restarts(0.7, steps, 0.1, growth),
        dict.fromkeys(places, 0.7),
        tuple(place + d for place in places for d in (-1, 1)),
    )


def cyclical(low, high, half_cycle, scale=lambda cycle, t: 1.0):
    """Smith 2017, sec. 3.1."""

    def oracle(t):
        cycle = math.floor(1 + t / (2 * half_cycle))
        x = abs(t / half_cycle - 2 * cycle + 1)
        return low + (high - low) * max(0.0, 1 - x) * scale(cycle, t)

    return oracle


def around_turns(half_cycle):
    """12 cycles, from the second to the last before step 2^24, and the steps beside their turns."""
    places = [2 * half_cycle * int(i) for i in np.linspace(1, LAST // (2 * half_cycle) - 1, 12)]
    tops = [place + half_cycle for place in places]
    return Case(
        Cyclical(0.1, 0.7, half_cycle),
        cyclical(0.1, 0.7, half_cycle),
        {**dict.fromkeys(places, 0.1), **dict.fromkeys(tops, 0.7)},
        tuple(turn + d for turn in places + tops for d in (-1, 1)),
        1e-9,
    )


def halved(cycle, t):
    return 1 / 2 ** (cycle - 1)


CASES = {
    "restarts": Case(WarmRestarts(0.5, 7, end=0.1), warm_restarts(0.5, 7, 0.1), {0: 0.5, 49: 0.5}),
    "restarts, falling": Case(
        WarmRestarts(0.5, 7, end=0.01, decay=0.8), warm_restarts(0.5, 7, 0.01, decay=0.8), {0: 0.5}
    ),
    "restarts, long": Case(
        WarmRestarts(0.5, 50_000, decay=0.9), warm_restarts(0.5, 50_000, decay=0.9), {}, LARGE
    ),
    "restarts every step": around_restarts(1, 1),
    "restarts every 3 steps": around_restarts(3, 1),
    "restarts every 49 steps": around_restarts(49, 1),
    "restarts every 1009 steps": around_restarts(1009, 1),
    "restarts, by 1.01": around_restarts(100, 1.01),
    "restarts, by 1.1": around_restarts(10, 1.1),
    "restarts, by 1.5": around_restarts(7, 1.5),
    "restarts, doubled": around_restarts(1, 2),
    "restarts, doubled and falling": Case(
        WarmRestarts(0.5, 3, end=0.1, growth=2, decay=0.9),
        warm_restarts(0.5, 3, 0.1, 2, 0.9),
        {0: 0.5},
    ),
    "triangular": Case(
        Cyclical(0.25, 0.75, 4),
        cyclical(0.25, 0.75, 4),
        {0: 0.25, 1: 0.375, 4: 0.75, 6: 0.5, 8: 0.25, 12: 0.75, 61: 0.625},
    ),
    "triangles of 2 steps": around_turns(1),
    "triangles of 98 steps": around_turns(49),
    "triangles of 2018 steps": around_turns(1009),
    "triangular2, long": Case(
        Cyclical(0.1, 0.7, 80_000, shape="triangular2"),
        cyclical(0.1, 0.7, 80_000, halved),
        {0: 0.1, 80_000: 0.7, 800_000: 0.1},
        LARGE,
    ),
    "triangular2": Case(
        Cyclical(0.25, 0.75, 5, shape="triangular2"),
        cyclical(0.25, 0.75, 5, halved),
        {0: 0.25, 5: 0.75, 10: 0.25, 15: 0.5, 20: 0.25, 25: 0.375, 1000: 0.25},
    ),
    "exp_range, long": Case(
        Cyclical(0.1, 0.7, 80_000, shape="exp_range", gamma=0.999999),
        cyclical(0.1, 0.7, 80_000, lambda cycle, t: 0.999999**t),
        {0: 0.1, 160_000: 0.1},
        LARGE,
        1e-12,
    ),
    "exp_range": Case(
        Cyclical(0.1, 0.7, 5, shape="exp_range", gamma=0.9),
        cyclical(0.1, 0.7, 5, lambda cycle, t: 0.9**t),
        {0: 0.1, 10: 0.1, 20: 0.1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


def test_restarts_by_hand():
    schedule = WarmRestarts(1.0, 4, growth=2.0, decay=0.5)
    found = schedule([0, 1, 2, 4, 8, 12, 20])
    expected = [1, 0.5 + math.sqrt(0.125), 0.5, 0.5, 0.25, 0.25, 0.125]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_lengths_are_rounded():
    """10, 11, 12.1 and 13.31 steps are 10, 11, 12 and 13."""
    found = WarmRestarts(1.0, 10, growth=1.1, decay=0.5)(np.arange(60))
    np.testing.assert_allclose(found[[10, 21, 33, 46]], [0.5, 0.25, 0.125, 0.0625], rtol=1e-14)
    assert np.flatnonzero(np.diff(found) > 0).tolist() == [9, 20, 32, 45]


def test_the_last_cycle_has_no_restart():
    found = WarmRestarts(1.0, 10, end=0.25, growth=3)([2**31 - 1, 2**33, 2**53])
    assert found[0] > 0.25
    np.testing.assert_array_equal(found[1:], 0.25)


def test_cycles_stay_in_their_range():
    found = Cyclical(0.1, 0.7, 7)(np.arange(1000))
    assert found.min() == 0.1
    assert found.max() == 0.7
    np.testing.assert_allclose(np.abs(np.diff(found)), 0.6 / 7, rtol=1e-12)


BAD = {
    "start": (lambda: WarmRestarts(-1, 2), "`start` must be a finite number >= 0.*start=-1"),
    "end": (lambda: WarmRestarts(1, 2, end=-1), "`end` must be a finite number >= 0.*end=-1"),
    "steps": (lambda: WarmRestarts(1, 0), "`steps` must be an integer >= 1.*steps=0"),
    "growth": (lambda: WarmRestarts(1, 2, growth=0), "`growth` must be a finite number above 0.*0"),
    "shrinking": (
        lambda: WarmRestarts(1, 2, growth=0.5),
        "`growth` must be 1 or at least 1.01; received: growth=0.5",
    ),
    "slow": (lambda: WarmRestarts(1, 2, growth=1.009), "`growth` must be 1 or.*growth=1.009"),
    "decay": (lambda: WarmRestarts(1, 2, decay=0), "`decay` must be a finite number above 0.*=0"),
    "low": (lambda: Cyclical(-0.1, 1, 2), "`low` must be a finite number >= 0.*low=-0.1"),
    "high": (lambda: Cyclical(0.1, -1, 2), "`high` must be a finite number >= 0.*high=-1"),
    "order": (lambda: Cyclical(0.5, 0.1, 2), "`low` must be at most `high`.*low=0.5, high=0.1"),
    "half cycle": (
        lambda: Cyclical(0.1, 1, 0),
        "`half_cycle` must be an integer >= 1.*half_cycle=0",
    ),
    "shape": (
        lambda: Cyclical(0.1, 1, 2, shape="sine"),
        "`shape` must be one of triangular, triangular2, exp_range; received: shape='sine'",
    ),
    "no gamma": (
        lambda: Cyclical(0.1, 1, 2, shape="exp_range"),
        "`gamma` must be given for shape='exp_range'.*; received: shape='exp_range', gamma=None",
    ),
    "useless gamma": (
        lambda: Cyclical(0.1, 1, 2, gamma=0.9),
        "and for no other shape; received: shape='triangular', gamma=0.9",
    ),
    "gamma": (
        lambda: Cyclical(0.1, 1, 2, shape="exp_range", gamma=1.1),
        r"`gamma` must be a factor in \(0, 1\]; received: gamma=1.1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
