"""Simple decays against their equations."""

import numpy as np
import pytest

from kattn.schedules import Constant, Exponential, Linear, Polynomial, Step
from tests.schedule_checks import LARGE, MILLION, Case, check_compiled, check_schedule


def polynomial(start, end, steps, power):
    def oracle(t):
        return end if t >= steps else end + (start - end) * ((steps - t) / steps) ** power

    return oracle


def step(start, boundaries, factor):
    def oracle(t):
        found = start
        for boundary in boundaries:
            if t >= boundary:
                found *= factor
        return found

    return oracle


CASES = {
    "integer": Case(Constant(2), lambda t: 2.0, {0: 2.0}),
    "constant": Case(Constant(0.3), lambda t: 0.3, {0: 0.3, 10**9: 0.3}),
    "linear": Case(
        Linear(0.5, 0.25, 8), polynomial(0.5, 0.25, 8, 1), {0: 0.5, 4: 0.375, 6: 0.3125, 8: 0.25}
    ),
    "linear, up": Case(
        Linear(0, 0.7, 49), polynomial(0, 0.7, 49, 1), {0: 0.0, 49: 0.7, 10**9: 0.7}
    ),
    "linear, in a step": Case(Linear(0.7, 0.1, 1), polynomial(0.7, 0.1, 1, 1), {0: 0.7, 1: 0.1}),
    "linear, long": Case(
        Linear(0.7, 0.1, 1_000_003),
        polynomial(0.7, 0.1, 1_000_003, 1),
        {0: 0.7, 1_000_003: 0.1},
        LARGE,
    ),
    "polynomial": Case(
        Polynomial(0.5, 0.25, 8), polynomial(0.5, 0.25, 8, 2), {0: 0.5, 4: 0.3125, 8: 0.25}
    ),
    "polynomial, up": Case(
        Polynomial(0.1, 0.5, 7, power=3), polynomial(0.1, 0.5, 7, 3), {0: 0.1, 7: 0.5}
    ),
    "root, long": Case(
        Polynomial(0.7, 0.1, MILLION, power=0.5),
        polynomial(0.7, 0.1, MILLION, 0.5),
        {0: 0.7, MILLION: 0.1},
        LARGE,
    ),
    "exponential": Case(Exponential(0.5, 0.1, 20), lambda t: 0.5 * 0.1 ** (t / 20), {0: 0.5}),
    "exponential, up": Case(Exponential(0.5, 1.3, 7), lambda t: 0.5 * 1.3 ** (t / 7), {0: 0.5}),
    "exponential, long": Case(
        Exponential(0.5, 0.999997, 1), lambda t: 0.5 * 0.999997**t, {0: 0.5}, LARGE, 1e-12
    ),
    "staircase": Case(
        Exponential(0.5, 0.7, 7, staircase=True), lambda t: 0.5 * 0.7 ** (t // 7), {6: 0.5}
    ),
    "staircase, long": Case(
        Exponential(0.5, 0.9, 50_000, staircase=True),
        lambda t: 0.5 * 0.9 ** (t // 50_000),
        {0: 0.5},
        LARGE,
    ),
    "step": Case(
        Step(0.5, [8, 9, 40], factor=0.5),
        step(0.5, [8, 9, 40], 0.5),
        {0: 0.5, 7: 0.5, 8: 0.25, 9: 0.125, 39: 0.125, 40: 0.0625},
    ),
    "step, long": Case(
        Step(0.5, (1, MILLION)), step(0.5, (1, MILLION), 0.1), {0: 0.5, 1: 0.05}, LARGE
    ),
    "NumPy": Case(
        Step(np.float32(0.5), np.array([3, 5]), factor=np.float64(0.25)),
        step(0.5, (3, 5), 0.25),
        {4: 0.125, 5: 0.03125},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


@pytest.mark.parametrize("kind", [Linear, Polynomial])
@pytest.mark.parametrize(("start", "end"), [(0.7, 0.1), (0.1, 0.7)])
def test_monotone(kind, start, end):
    found = kind(start, end, 1000)(np.arange(1200))
    assert (np.diff(found) * np.sign(end - start) >= 0).all()
    assert found.min() == min(start, end)
    assert found.max() == max(start, end)


BAD = {
    "constant": (lambda: Constant(-1.0), r"`constant` must be a finite number >= 0;.*constant=-1"),
    "no number": (lambda: Constant("1"), "`constant` must be a finite number >= 0.*constant='1'"),
    "bool": (lambda: Constant(True), "`constant` must be a finite number >= 0.*constant=True"),
    "not finite": (lambda: Linear(0.5, np.nan, 3), "`end` must be a finite number >= 0.*end=nan"),
    "negative start": (lambda: Linear(-0.5, 0.1, 3), "`start` must be a finite number >= 0.*-0.5"),
    "no steps": (lambda: Linear(0.5, 0.1, 0), "`steps` must be an integer >= 1.*steps=0"),
    "part of a step": (lambda: Linear(0.5, 0.1, 2.5), "`steps` must be an integer >= 1.*2.5"),
    "bool steps": (lambda: Linear(0.5, 0.1, True), "`steps` must be an integer >= 1.*steps=True"),
    "polynomial": (lambda: Polynomial(0.5, -0.1, 2), "`end` must be a finite number >= 0.*-0.1"),
    "steps": (lambda: Polynomial(0.5, 0.1, -2), "`steps` must be an integer >= 1.*steps=-2"),
    "power": (lambda: Polynomial(0.5, 0.1, 2, power=0), "`power` must be a finite.*above 0.*=0"),
    "rate": (lambda: Exponential(0.5, -0.1, 2), "`rate` must be a finite number above 0.*-0.1"),
    "exponential": (lambda: Exponential(-0.5, 0.1, 2), "`start` must be a finite.*start=-0.5"),
    "exponential steps": (lambda: Exponential(0.5, 0.1, 0), "`steps` must be an integer.*steps=0"),
    "staircase": (lambda: Exponential(0.5, 0.1, 2, staircase=1), "`staircase` must be a bool.*=1"),
    "step": (lambda: Step(-0.5, [2]), "`start` must be a finite number >= 0.*start=-0.5"),
    "factor": (lambda: Step(0.5, [2], factor=0), "`factor` must be a finite number above 0.*=0"),
    "order": (lambda: Step(0.5, [2, 2]), r"`boundaries` must be integers >= 1, each.*\(2, 2\)"),
    "boundary 0": (lambda: Step(0.5, [0, 2]), r"`boundaries` must be integers >= 1.*\(0, 2\)"),
    "parts": (lambda: Step(0.5, [1, 2.5]), r"`boundaries` must be integers >= 1.*\(1, 2.5\)"),
    "no list": (lambda: Step(0.5, 2), "`boundaries` must be integers >= 1.*boundaries=2"),
    "no boundary": (
        lambda: Step(0.5, []),
        r"`boundaries` must have at least one step; received: boundaries=\(\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
