"""What the flags of training ask for."""

import numpy as np
import pytest

from recipes import harness


@pytest.mark.parametrize(
    "name",
    ["cosine", "constant", "linear", "inverse_sqrt", "restarts", "one_cycle", "stable", "flat"],
)
@pytest.mark.parametrize(("total", "warm_up"), [(100, 10), (100, 0), (3, 0), (1, 1)])
def test_schedules_reach_their_peak_and_go_no_higher(name, total, warm_up):
    rates = harness.make_schedule(name, 0.5, total, warm_up)(np.arange(total))
    assert np.all((rates >= 0) & (rates <= 0.5))
    if total == 100:
        assert rates.max() == pytest.approx(0.5, rel=1e-2)
        if warm_up:
            assert rates[0] < 0.1
            assert np.all(np.diff(rates[:warm_up]) > 0)
        if name not in ("constant", "inverse_sqrt"):
            assert rates[-1] < 0.1


def test_callbacks():
    flags = harness.TrainingFlags(schedule="one_cycle", clip="agc:0.5")
    rate, momentum, clipping = harness.make_callbacks(flags, 0.5, 10, 2)
    assert rate.schedule(2) == 0.5
    assert (momentum.name, momentum.schedule(2)) == ("beta_1", 0.85)
    assert (clipping.mode, clipping.threshold) == ("agc", 0.5)
    (rate,) = harness.make_callbacks(harness.TrainingFlags(), 0.5, 10, 2)
    assert rate.schedule(2) == 0.5
    assert harness.make_clipping("autoclip").threshold is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epochs": 0}, "`epochs` must be an integer >= 1; received: epochs=0"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be an integer >= 1"),
        ({"clip": "median:1"}, "`clip` must be one of value, norm, .*; received: clip='median:1'"),
        ({"clip": "norm:x"}, "`clip` must have a number after the colon; received: clip='norm:x'"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        harness.TrainingFlags(**flags).check()
