"""Warm-up, stable, decay against the equations of Haegele et al. and their code."""

import math

import numpy as np
import pytest

from kattn.schedules import WarmupStableDecay
from tests.schedule_checks import LARGE, MILLION, Case, check_compiled, check_schedule

SHAPES = {  # what remains of the height, at a share u of the decay to a fraction f
    "linear": lambda u, f: f + (1 - f) * (1 - u),
    "sqrt": lambda u, f: f + (1 - f) * (1 - math.sqrt(u)),
    "cosine": lambda u, f: f + (1 - f) * 0.5 * (1 + math.cos(math.pi * u)),
    "square": lambda u, f: f + (1 - f) * (1 - u**2),
    "exponential": lambda u, f: f**u,
}


def oracle_of(peak, steps, warmup, decay, shape, divisor=100.0, end=0.0):
    def oracle(t):
        if t < warmup:
            return peak * (t / warmup + (1 - t / warmup) / divisor)
        if t < steps - decay:
            return peak
        return peak * SHAPES[shape](min((t - (steps - decay)) / decay, 1.0), end / peak)

    return oracle


def small(shape):
    schedule = WarmupStableDecay(
        0.7, 47, warmup_steps=9, decay_steps=23, shape=shape, start_divisor=20, end=0.1
    )
    known = {0: 0.7 / 20, 9: 0.7, 23: 0.7, 24: 0.7, 47: 0.1, 10**9: 0.1}
    return Case(schedule, oracle_of(0.7, 47, 9, 23, shape, 20, 0.1), known)


def large(shape):
    schedule = WarmupStableDecay(
        0.7, MILLION, warmup_steps=100_000, decay_steps=200_003, shape=shape, end=1e-4
    )
    known = {100_000: 0.7, 799_997: 0.7, MILLION: 1e-4}
    return Case(schedule, oracle_of(0.7, MILLION, 100_000, 200_003, shape, end=1e-4), known, LARGE)


CASES = {
    "to 0": Case(
        WarmupStableDecay(0.7, 40, warmup_steps=10, decay_steps=20),
        oracle_of(0.7, 40, 10, 20, "linear"),
        {0: 0.7 / 100, 10: 0.7, 20: 0.7, 40: 0.0},
    ),
    "no warm-up": Case(
        WarmupStableDecay(0.7, 30, warmup_steps=0, decay_steps=10, shape="sqrt"),
        oracle_of(0.7, 30, 0, 10, "sqrt"),
        {0: 0.7, 20: 0.7, 30: 0.0},
    ),
    "never stable": Case(
        WarmupStableDecay(0.7, 30, warmup_steps=20, decay_steps=10),
        oracle_of(0.7, 30, 20, 10, "linear"),
        {20: 0.7, 30: 0.0},
    ),
    **{f"{shape}, long": large(shape) for shape in SHAPES},
    **{shape: small(shape) for shape in SHAPES},
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


BY_HAND = {"linear": 0.75, "sqrt": 0.5, "cosine": 0.5 + math.sqrt(0.125), "square": 0.9375}


@pytest.mark.parametrize("shape", BY_HAND)
def test_a_quarter_of_the_decay_by_hand(shape):
    schedule = WarmupStableDecay(2.0, 10, warmup_steps=2, decay_steps=4, shape=shape)
    assert schedule([1, 6, 7]) == pytest.approx([1.01, 2.0, 2.0 * BY_HAND[shape]], rel=1e-14)


def test_exponential_decay_by_hand():
    schedule = WarmupStableDecay(
        1.0, 10, warmup_steps=2, decay_steps=4, shape="exponential", end=0.0625
    )
    assert schedule([6, 7, 8, 9, 10]) == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625], rel=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_monotone(shape):
    schedule = WarmupStableDecay(0.7, 149, warmup_steps=49, decay_steps=49, shape=shape, end=0.1)
    found = schedule(np.arange(200))
    assert (np.diff(found[:50]) > 0).all()
    assert (np.diff(found[49:101]) == 0).all()
    assert (np.diff(found[100:150]) < 0).all()
    assert (np.diff(found[149:]) == 0).all()


def test_a_shorter_training_shares_its_beginning():
    """Hu et al. 2024: one training serves many lengths."""
    short, long = (
        WarmupStableDecay(0.7, steps, warmup_steps=10, decay_steps=20) for steps in (60, 200)
    )
    np.testing.assert_array_equal(short(np.arange(41)), long(np.arange(41)))
    np.testing.assert_array_equal(short(np.arange(40, 70)), long(np.arange(180, 210)))


def make(**changed):
    return WarmupStableDecay(
        **{"peak": 1, "steps": 9, "warmup_steps": 2, "decay_steps": 3, **changed}
    )


BAD = {
    "`peak` must be a finite number above 0.*peak=0": {"peak": 0},
    "`steps` must be an integer >= 1.*steps=0": {"steps": 0},
    "`warmup_steps` must be an integer >= 0.*warmup_steps=-1": {"warmup_steps": -1},
    "`decay_steps` must be an integer >= 1.*decay_steps=0": {"decay_steps": 0},
    "must be at most `steps` together.*warmup_steps=2, decay_steps=8, steps=9": {"decay_steps": 8},
    "`shape` must be one of linear, sqrt, cosine, square, exponential.*'tail'": {"shape": "tail"},
    "`start_divisor` must be a finite number above 0.*start_divisor=0": {"start_divisor": 0},
    "`end` must be a finite number >= 0.*end=-1": {"end": -1},
    "`end` must be above 0 for shape='exponential'; received: end=0.0": {"shape": "exponential"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        make(**BAD[message])
