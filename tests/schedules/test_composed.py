"""Schedules of schedules, one after another."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from kattn.schedules import Constant, Cosine, Joined, Step, WarmRestarts, WarmUp
from tests.compute import run
from tests.schedule_checks import (
    FLOAT32,
    LARGE,
    MILLION,
    Case,
    check_compiled,
    check_near,
    check_schedule,
)


@keras.saving.register_keras_serializable("kattn.tests")
def reciprocal(step):
    return 0.5 / (step + 1.0)


@keras.saving.register_keras_serializable("kattn.tests")
class Fixed:
    """A registered callable with a config, that gives a number whatever the step."""

    def __call__(self, step):
        return 0.25

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __eq__(self, other):
        return isinstance(other, Fixed)

    def __hash__(self):
        return 0


def unregistered(step):
    return 0.5 / (step + 1.0)


def cosine(start, end, steps):
    return lambda t: end + (start - end) * (1 + math.cos(math.pi * min(t / steps, 1))) / 2


def warm(oracle, steps, start=0.0):
    """Goyal et al. 2017, sec. 2.2."""
    return lambda t: start + (oracle(0.0) - start) * t / steps if t < steps else oracle(t - steps)


def joined(oracles, boundaries):
    def oracle(t):
        place = sum(t >= boundary for boundary in boundaries)
        return oracles[place](t - (0, *boundaries)[place])

    return oracle


HALVES = Step(0.5, [10, 20], factor=0.5)
CASES = {
    "warm-up": Case(
        WarmUp(Cosine(0.5, 0.1, 40), 8),
        warm(cosine(0.5, 0.1, 40), 8),
        {0: 0.0, 2: 0.125, 4: 0.25, 8: 0.5, 48: 0.1, 10**9: 0.1},
    ),
    "warm-up, start": Case(
        WarmUp(Cosine(0.7, 0.1, 9), 49, start=0.2),
        warm(cosine(0.7, 0.1, 9), 49, 0.2),
        {0: 0.2, 49: 0.7, 58: 0.1},
    ),
    "warm-up, long": Case(
        WarmUp(Cosine(0.7, 0.1, MILLION), 49_999),
        warm(cosine(0.7, 0.1, MILLION), 49_999),
        {49_999: 0.7, 1_049_999: 0.1},
        LARGE,
    ),
    "warm-up of restarts": Case(
        WarmUp(WarmRestarts(0.7, 60, growth=2.0), 5),
        warm(cosine(0.7, 0.0, 60), 5),
        {0: 0.0, 5: 0.7},
    ),
    "warm-up of a warm-up": Case(
        WarmUp(WarmUp(Constant(0.5), 7, start=0.25), 5),
        warm(warm(lambda t: 0.5, 7, 0.25), 5),
        {0: 0.0, 5: 0.25, 12: 0.5},
    ),
    "warm-up to a number": Case(
        WarmUp(Fixed(), 8), lambda t: min(t / 8, 1.0) / 4, {0: 0.0, 2: 0.0625, 8: 0.25}
    ),
    "warm-up of a function": Case(
        WarmUp(reciprocal, 5, start=0.1),
        warm(lambda t: 0.5 / (t + 1), 5, 0.1),
        {0: 0.1, 5: 0.5, 6: 0.25},
    ),
    "one alone": Case(Joined([Fixed()], []), lambda t: 0.25, {0: 0.25}),
    "joined, long": Case(
        Joined((Cosine(0.7, 0.1, MILLION), Constant(0.3)), (MILLION,)),
        joined([cosine(0.7, 0.1, MILLION), lambda t: 0.3], [MILLION]),
        {0: 0.7, MILLION: 0.3},
        LARGE,
    ),
    "joined with functions": Case(
        Joined([Fixed(), reciprocal, Fixed()], [9, 20]),
        joined([lambda t: 0.25, lambda t: 0.5 / (t + 1), lambda t: 0.25], [9, 20]),
        {8: 0.25, 9: 0.5, 10: 0.25, 12: 0.125, 20: 0.25},
    ),
    "joined": Case(
        Joined([Cosine(0.5, 0.1, 8), Constant(0.3), WarmUp(Cosine(0.7, 0.2, 9), 4)], [9, 20]),
        joined([cosine(0.5, 0.1, 8), lambda t: 0.3, warm(cosine(0.7, 0.2, 9), 4)], [9, 20]),
        {0: 0.5, 8: 0.1, 9: 0.3, 19: 0.3, 20: 0.0, 22: 0.35, 24: 0.7, 33: 0.2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


def stock():
    return keras.optimizers.schedules.CosineDecay(0.5, 40, alpha=0.2)


@pytest.mark.parametrize("number", [0, 3, 5, 25, 45, 70])
def test_schedules_of_keras_serve_too(number):
    """In their own precision, float32, but of a number still a float."""
    schedule = WarmUp(stock(), 5)
    expected = warm(cosine(0.5, 0.1, 40), 5)(number)
    assert type(schedule(number)) is float
    check_near([schedule(number)], [expected], 8 * FLOAT32)
    check_near([run(schedule, ops.convert_to_tensor(number))], [expected], 8 * FLOAT32)


def test_schedules_of_keras_are_saved():
    schedule = Joined([stock(), Constant(0.5)], [7])
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert again.schedules[0].get_config() == stock().get_config()
    np.testing.assert_array_equal(again([0, 3, 7]), schedule([0, 3, 7]))


@pytest.mark.parametrize(
    "schedule",
    [unregistered, lambda step: 0.5, abs, object.__new__(type("Odd", (), {"__call__": abs}))],
)
def test_only_what_can_be_found_again_is_saved(schedule):
    for composed in (WarmUp(schedule, 3), Joined([Constant(0.5), schedule], [3])):
        with pytest.raises(
            ValueError, match=r"A function in a schedule must be registered.*schedule="
        ):
            composed.get_config()


BAD = {
    "no schedule": (
        lambda: WarmUp(0.1, 3),
        "`schedule` must be a schedule or a function of the step; received: schedule=0.1",
    ),
    "steps": (lambda: WarmUp(HALVES, 0), "`steps` must be an integer >= 1.*steps=0"),
    "start": (
        lambda: WarmUp(HALVES, 3, start=-1),
        "`start` must be a finite number >= 0.*start=-1",
    ),
    "no list": (lambda: Joined(HALVES, [3]), r"`schedules` must be a list or tuple.*Step\("),
    "no schedules": (
        lambda: Joined([HALVES, 0.1], [3]),
        r"`schedules\[1\]` must be a schedule or a function of the step; received.*=0.1",
    ),
    "boundaries": (
        lambda: Joined([HALVES] * 3, [3, 3]),
        r"`boundaries` must be integers >= 1, each above.*\(3, 3\)",
    ),
    "lengths": (
        lambda: Joined([HALVES] * 2, [3, 4]),
        r"one schedule more than boundaries; received: len\(schedules\)=2, len\(boundaries\)=2",
    ),
    "nothing": (lambda: Joined([], []), r"one schedule more than boundaries.*len\(schedules\)=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
