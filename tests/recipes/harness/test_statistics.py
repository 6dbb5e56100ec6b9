"""Means, intervals, and sentences on differences."""

import math

import pytest

from recipes import harness


def test_statistics():
    mean, spread = harness.mean_and_spread([1.0, 2.0, 6.0])
    assert (mean, spread) == (3.0, pytest.approx(math.sqrt(7)))
    assert math.isnan(harness.mean_and_spread([1.0])[1])
    low, high = harness.paired_interval([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7 / 3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert harness.paired_interval([1.0]) is None


@pytest.mark.parametrize(
    ("plain", "attention", "words"),
    [
        ([0.5], [0.625], "12.50 points higher (one seed"),
        ([0.5, 0.6, 0.7], [0.6, 0.7, 0.81], "10.33 points higher (95 %"),
        ([0.5, 0.6], [0.4, 0.6], "includes 0: no clear difference"),
        ([0.5, 0.6, 0.7], [0.4, 0.5, 0.61], "which leaves 0 out"),
    ],
)
def test_one_difference(plain, attention, words):
    plain, attention = ([100 * value for value in values] for values in (plain, attention))
    assert words in harness.one_difference("Accuracy", attention, plain, unit="points")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"a": [1.5, 2.5, 3.51], "b": [1.0, 2.2, 2.9]}, "clearly lower for none; clearly higher "),
        (
            {"a": [1.5, 2.5, 3.51], "b": [1.0, 2.2, 2.9]},
            "higher for A (+0.503). So the 95 % intervals of 1 of 2",
        ),
        ({"a": [0.5, 1.5, 2.51], "b": [0.0, 1.0, 2.01]}, "lower for B (-0.997), A (-0.497); cl"),
        ({"a": [1.0]}, "one seed, so nothing can be said about chance"),
        ({}, "nothing was compared with the base"),
    ],
)
def test_clear_differences(others, words):
    titles = {"base": "the base", "a": "A", "b": "B"}
    base = [1.0, 2.0, 3.0][: len(others.get("a", range(3)))]
    assert words in harness.clear_differences("Loss", "base", {"base": base, **others}, titles)


def test_paired_difference():
    clear = harness.PairedDifference.between([1.5, 2.5, 3.51], [1.0, 2.0, 3.0])
    assert clear.mean == pytest.approx(1.51 / 3)
    assert clear.is_clear
    assert str(clear) == "+0.5033 [+0.4890, +0.5177] *"
    unclear = harness.PairedDifference.between([0.0, 2.5], [1.0, 2.0])
    assert not unclear.is_clear
    assert str(unclear).startswith("-0.2500 [-9.7797, +9.2797]")
    alone = harness.PairedDifference.between([1.0], [2.0])
    assert (alone.interval, alone.is_clear, str(alone)) == (None, False, "-1.0000")


def test_digits_and_units():
    said = harness.one_difference("The loss", [1.25, 1.5], [1.0, 1.5], digits=3)
    assert said.startswith("The loss is 0.125 higher (95 %")
    assert harness.with_spread([1.0, 2.0], 1) == "1.5 ± 0.7"
    assert harness.with_spread([1.0]) == "1.0000"


def test_scores():
    score = harness.Score("accuracy", "test accuracy", is_percentage=True)
    assert (score.heading, score.scale) == ("Test accuracy, %", 100)
    score = harness.Score("loss", "test loss")
    assert (score.heading, score.scale) == ("Test loss", 1)
