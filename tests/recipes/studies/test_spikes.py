"""Corrupted batches, and what is measured of a spike."""

import numpy as np
import pytest

from recipes.data.text import load_text
from recipes.studies import clipping, spikes


@pytest.fixture
def text(tmp_path):
    """Lines of a's and b's, in which b follows a."""
    path = tmp_path / "ab.txt"
    path.write_text("ab" * 400 + "\n" + "abab\n" * 100, encoding="utf-8")
    return path


def test_corrupted_batches(text):
    settings = clipping.Settings(steps=30, batch_size=4, length=6, spike_weight=50.0)
    found = load_text(text, 6, 4)
    clean = clipping.training_batches(found, settings, 3, ())
    spiking = clipping.training_batches(found, settings, 3, (12,))
    assert len(clean) == len(spiking) == 30
    for step in range(30):
        (x, y, weight), (x2, y2, weight2) = clean[step], spiking[step]
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(weight, np.ones((4, 6)))
        assert np.array_equal(y, y2) == (step != 12)
        np.testing.assert_array_equal(weight2, np.full((4, 6), 50.0 if step == 12 else 1.0))
        np.testing.assert_array_equal(np.sort(y, None), np.sort(y2, None))
    assert clean.get_config() != spiking.get_config()


def curve(*pieces):
    return np.concatenate([np.full(count, level) for count, level in pieces])


def test_recovery_of_hand_made_curves():
    losses = curve((20, 2.0), (1, 500.0), (15, 3.0), (25, 2.0))
    (found,) = spikes.recoveries(losses, (20,))
    # The mean of ten steps is at most 2.02 once they are all after the 15 of 3.0.
    assert found.steps == 15
    assert found.height == pytest.approx(1.0)

    losses[36:] = 2.02
    assert spikes.recoveries(losses, (20,))[0].steps == 15
    losses[36:] = 2.021
    assert spikes.recoveries(losses, (20,))[0].steps is None

    losses = curve((20, 2.0), (1, 500.0), (40, 1.9))
    (found,) = spikes.recoveries(losses, (20,))
    assert found.steps == 0
    assert found.height == pytest.approx(-0.1)


def test_recovery_of_several_spikes():
    # The first has not recovered when the next comes, whose level before is the higher one.
    losses = curve((15, 2.0), (1, 9.0), (14, 2.5), (1, 9.0), (5, 2.9), (20, 2.5))
    first, second = spikes.recoveries(losses, (15, 30))
    assert first == spikes.Recovery(pytest.approx(0.5), None)
    assert second == spikes.Recovery(pytest.approx(0.2), 5)
    found = [first, second, spikes.Recovery(0.0, 7)]
    assert spikes.in_words(found) == "7 (5 to not), not: 1 of 3"
    assert spikes.in_words(found[1:]) == "5 (5 to 7)"
    assert spikes.in_words(found[:1]) == "not (not to not), not: 1 of 1"


def test_share_clipped_leaves_corrupted_steps_out():
    norms = {"norm": [1.0, 3.0, 9.0, 1.0, 5.0], "clipped_norm": [1.0, 2.0, 2.0, 1.0, 2.0]}
    assert spikes.share_clipped([{"norms": norms}], (2,)) == "50"
