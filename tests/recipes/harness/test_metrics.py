"""Cross-entropy and accuracy, by hand."""

import numpy as np
import pytest

from recipes import harness


def test_cross_entropy_and_accuracy():
    logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]) + np.array([[1000.0], [-3.0]])
    scores = harness.cross_entropy_and_accuracy(logits, np.array([1, 2]))
    assert scores == pytest.approx({"loss": -np.log(0.25 * 0.75) / 2, "accuracy": 0.5})
