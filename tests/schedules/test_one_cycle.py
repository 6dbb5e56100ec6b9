"""One cycle against fastai's and Smith's descriptions."""

import math

import numpy as np
import pytest

from kattn.schedules import (
    OneCycle,
    OneCycleMomentum,
    SmithOneCycle,
    SmithOneCycleMomentum,
)
from tests.schedule_checks import LARGE, MILLION, Case, check_compiled, check_schedule


def annealed(start, end, share):
    """fastai's `SchedCos`."""
    return start + (1 + math.cos(math.pi * (1 - share))) * (end - start) / 2


def one_cycle(start, middle, end, steps, warmup):
    """fastai's `combined_cos`: a wave for a share `warmup` of training, one for the rest."""

    def oracle(t):
        share = min(t / steps, 1.0)
        if share < warmup:
            return annealed(start, middle, share / warmup)
        return annealed(middle, end, (share - warmup) / (1 - warmup))

    return oracle


def smith(low, peak, half_cycle, steps, last):
    """Up, down, and down to `last`, each linear."""
    places = (0, half_cycle, 2 * half_cycle, steps)
    return lambda t: float(np.interp(t, places, (low, peak, low, last)))


CASES = {
    "one cycle": Case(
        OneCycle(0.7, 40),
        one_cycle(0.028, 0.7, 2.8e-6, 40, 0.3),
        {0: 0.7 / 25, 12: 0.7, 40: 0.7 / 25 / 1e4, 10**9: 0.7 / 25 / 1e4},
    ),
    "one cycle, between steps": Case(
        OneCycle(0.5, 47, warmup=0.55, start_divisor=5, end_divisor=2.0),
        one_cycle(0.1, 0.5, 0.05, 47, 0.55),
        {0: 0.1, 47: 0.05},
    ),
    "one cycle, long": Case(
        OneCycle(0.7, MILLION),
        one_cycle(0.028, 0.7, 2.8e-6, MILLION, 0.3),
        {300_000: 0.7, MILLION: 0.7 / 25 / 1e4},
        LARGE,
    ),
    "momentum": Case(
        OneCycle(0.7, 40).momentum(),
        one_cycle(0.95, 0.85, 0.95, 40, 0.3),
        {0: 0.95, 12: 0.85, 40: 0.95, 10**9: 0.95},
    ),
    "momentum, between steps": Case(
        OneCycle(0.5, 47, warmup=0.55).momentum(0.9, low=0.4),
        one_cycle(0.9, 0.4, 0.9, 47, 0.55),
        {0: 0.9, 47: 0.9},
    ),
    "smith": Case(
        SmithOneCycle(0.3, 0.7, 20, steps=49),
        smith(0.3, 0.7, 20, 49, 0.003),
        {0: 0.3, 20: 0.7, 40: 0.3, 49: 0.003, 10**9: 0.003},
    ),
    "smith, short": Case(
        SmithOneCycle(0.1, 0.5, 1, steps=3, end_divisor=2),
        smith(0.1, 0.5, 1, 3, 0.05),
        {0: 0.1, 1: 0.5, 2: 0.1, 3: 0.05},
    ),
    "smith, long": Case(
        SmithOneCycle(0.3, 0.7, 400_003, steps=MILLION),
        smith(0.3, 0.7, 400_003, MILLION, 0.003),
        {400_003: 0.7, 800_006: 0.3, MILLION: 0.003},
        LARGE,
    ),
    "smith's momentum": Case(
        SmithOneCycle(0.1, 0.5, 20, steps=49).momentum(),
        smith(0.95, 0.85, 20, 49, 0.95),
        {0: 0.95, 20: 0.85, 40: 0.95, 10**9: 0.95},
    ),
    "smith's momentum, other": Case(
        SmithOneCycle(0.1, 0.5, 4, steps=49).momentum(0.75, low=0.5),
        smith(0.75, 0.5, 4, 49, 0.75),
        {1: 0.6875, 4: 0.5, 6: 0.625, 8: 0.75},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


@pytest.mark.parametrize(
    ("step", "rate", "momentum"),
    [(0, 0.25, 0.75), (5, 0.625, 0.625), (10, 1.0, 0.5), (15, 0.5625, 0.625), (20, 0.125, 0.75)],
)
def test_one_cycle_by_hand(step, rate, momentum):
    schedule = OneCycle(1.0, 20, warmup=0.5, start_divisor=4, end_divisor=2)
    assert schedule(step) == pytest.approx(rate, rel=1e-14)
    assert schedule.momentum(0.75, 0.5)(step) == pytest.approx(momentum, rel=1e-14)


@pytest.mark.parametrize(
    "schedule",
    [OneCycle(0.7, 1000), SmithOneCycle(0.1, 0.7, 300, steps=1000)],
    ids=lambda s: type(s),
)
def test_momentum_mirrors_the_learning_rate(schedule):
    steps = np.arange(1, 1000)
    rates, momenta = schedule(steps), schedule.momentum()(steps)
    assert rates.argmax() == momenta.argmin() == 299
    assert (np.diff(rates) * np.diff(momenta) <= 0).all()


def test_momentum_is_a_schedule_of_its_own():
    assert OneCycle(0.7, 10, warmup=0.4).momentum(0.9, 0.8) == OneCycleMomentum(
        0.9, 0.8, 10, warmup=0.4
    )
    found = SmithOneCycle(0.1, 0.7, 3, steps=10).momentum(0.9, 0.8)
    assert found == SmithOneCycleMomentum(0.9, 0.8, 3)


BAD = {
    "peak": (lambda: OneCycle(0, 2), "`peak` must be a finite number above 0.*peak=0"),
    "steps": (lambda: OneCycle(1, 0), "`steps` must be an integer >= 1.*steps=0"),
    "warmup": (
        lambda: OneCycle(1, 2, warmup=0.0),
        r"`warmup` must be a fraction in \(0, 1\).*=0.0",
    ),
    "start": (lambda: OneCycle(1, 2, start_divisor=0), "`start_divisor` must be a finite.*above 0"),
    "end": (lambda: OneCycle(1, 2, end_divisor=-1), "`end_divisor` must be a finite.*above 0.*=-1"),
    "high": (
        lambda: OneCycle(1, 2).momentum(high=1.0),
        r"`high` must be a fraction in \(0, 1\).*high=1.0",
    ),
    "low": (lambda: OneCycle(1, 2).momentum(low=-0.1), r"`low` must be a fraction in.*low=-0.1"),
    "momentum": (
        lambda: OneCycle(1, 2).momentum(0.8, 0.9),
        "`low` must be at most `high`.*low=0.9, high=0.8",
    ),
    "momentum steps": (
        lambda: OneCycleMomentum(0.9, 0.8, 0),
        "`steps` must be an integer.*steps=0",
    ),
    "momentum warmup": (
        lambda: OneCycleMomentum(0.9, 0.8, 5, warmup=1),
        r"`warmup` must be a fraction in \(0, 1\).*warmup=1",
    ),
    "smith's low": (lambda: SmithOneCycle(-1, 1, 2, steps=5), "`low` must be a finite.*low=-1"),
    "smith's peak": (
        lambda: SmithOneCycle(0.5, 0.1, 2, steps=5),
        "`low` must be at most `peak`.*low=0.5, peak=0.1",
    ),
    "smith's half": (
        lambda: SmithOneCycle(0, 1, 0, steps=5),
        "`half_cycle` must be an integer >= 1",
    ),
    "smith's steps": (
        lambda: SmithOneCycle(0, 1, 2, steps=4),
        "`steps` must be above twice `half_cycle`; received: steps=4, half_cycle=2",
    ),
    "smith's divisor": (
        lambda: SmithOneCycle(0, 1, 2, steps=5, end_divisor=0),
        "`end_divisor` must be a finite number above 0.*end_divisor=0",
    ),
    "smith's momentum": (
        lambda: SmithOneCycleMomentum(0.8, 0.9, 2),
        "`low` must be at most `high`.*low=0.9, high=0.8",
    ),
    "smith's momentum high": (
        lambda: SmithOneCycleMomentum(1, 0.9, 2),
        r"`high` must be a fraction in \(0, 1\).*high=1",
    ),
    "smith's momentum half": (
        lambda: SmithOneCycleMomentum(0.9, 0.8, -2),
        "`half_cycle` must be an integer >= 1.*half_cycle=-2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
