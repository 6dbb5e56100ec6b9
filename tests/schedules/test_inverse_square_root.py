"""Schedules that fall as 1 / sqrt(t), against the papers' equations."""

import numpy as np
import pytest

from kattn.schedules import InverseSquareRoot, Noam
from tests.schedule_checks import LARGE, MILLION, Case, check_compiled, check_schedule


def noam(width, warmup_steps, scale=1.0):
    """Vaswani et al. 2017, eq. 3; their step_num counts from 1."""

    def oracle(t):
        step_num = t + 1
        return scale * width**-0.5 * min(step_num**-0.5, step_num * warmup_steps**-1.5)

    return oracle


def inverse_square_root(start, steps):
    """Raffel et al. 2019, sec. 3.1.2, 1 / sqrt(max(n, k)), times start * sqrt(k)."""
    return lambda t: start * steps**0.5 / max(t, steps) ** 0.5


CASES = {
    "inverse square root": Case(
        InverseSquareRoot(0.3, 7), inverse_square_root(0.3, 7), {0: 0.3, 6: 0.3, 7: 0.3, 28: 0.15}
    ),
    "inverse square root, long": Case(
        InverseSquareRoot(0.3, 300_001),
        inverse_square_root(0.3, 300_001),
        {0: 0.3, 300_001: 0.3},
        LARGE,
    ),
    "noam": Case(Noam(512, 20), noam(512, 20), {}),
    "noam, long": Case(Noam(512, MILLION), noam(512, MILLION), {}, LARGE),
    "noam, scaled": Case(Noam(64, 16, scale=4.0), noam(64, 16, 4.0), {7: 0.0625, 15: 0.125}),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])


def test_compiled():
    check_compiled(CASES)


def test_noam_is_highest_at_the_end_of_its_warm_up():
    found = Noam(512, 4000)(np.arange(10_000))
    assert found.argmax() == 3999
    assert found[3999] == pytest.approx(1 / np.sqrt(512 * 4000), rel=1e-14)


BAD = {
    "start": (lambda: InverseSquareRoot(-1, 2), "`start` must be a finite number >= 0.*start=-1"),
    "steps": (lambda: InverseSquareRoot(1, 0), "`steps` must be an integer >= 1.*steps=0"),
    "width": (lambda: Noam(0, 4), "`width` must be an integer >= 1.*width=0"),
    "warm-up": (lambda: Noam(4, -1), "`warmup_steps` must be an integer >= 1.*warmup_steps=-1"),
    "scale": (lambda: Noam(4, 4, scale=0.0), "`scale` must be a finite number above 0.*scale=0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
