"""What a curve of losses suggests."""

import itertools
import math
import sys

import numpy as np
import pytest

from kattn.callbacks import LearningRateCurve


def curve_of(losses, first=0):
    losses = np.array(losses, float)
    return LearningRateCurve(10.0 ** np.arange(len(losses)), losses, losses, first)


def longest_valleys(losses):
    """First and last places of the longest falling series, by trying all."""
    for length in range(len(losses), 0, -1):
        found = [
            (places[0], places[-1])
            for places in itertools.combinations(range(len(losses)), length)
            if all(losses[a] > losses[b] for a, b in itertools.pairwise(places))
        ]
        if found:
            return found
    return []


@pytest.mark.parametrize("seed", range(20))
def test_valley(seed):
    losses = np.random.default_rng(seed).permutation(9) - 0.3 * np.arange(9)
    found = round(math.log10(curve_of(losses).valley))
    assert found in {start + 2 * (end - start) // 3 for start, end in longest_valleys(losses)}


def test_valley_of_a_plain_curve():
    curve = curve_of([9, 8.9, 8, 6.5, 5, 3, 2, 2.5, 7, 20])  # falls from place 0 to 6
    assert curve.valley == 10.0**4
    assert curve_of([1, 2, 3]).valley == 1.0  # none: the lowest rate
    assert curve_of([9, 8, 7, 6, 6, 6, 6]).valley == 10.0**2


def test_steepest_and_minimum():
    curve = curve_of([9, 8.9, 8.5, 6, 5.5, 5.4, 5.3, 7])
    assert curve.steepest == 10.0**3  # slopes -0.25, -1.45, -1.5, -0.3 at places 1 to 4
    assert curve.minimum == 10.0**5
    assert curve.suggestions == {
        "valley": curve.valley,
        "steepest": curve.steepest,
        "minimum": curve.minimum,
    }


def test_suggestions_leave_out_the_start():
    curve = curve_of([0, -5, 20, 9, 8, 7, 6.5, 6.4, 9], first=3)
    assert (curve.valley, curve.steepest, curve.minimum) == (10.0**5, 10.0**3, 10.0**6)


def test_plot_says_what_is_missing(monkeypatch, tmp_path):
    """A plot that is drawn: tests/recipes/test_learning_rate_plot.py."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot needs Matplotlib: pip install matplotlib"):
        curve_of([3, 2, 1]).plot(tmp_path / "curve.png")
