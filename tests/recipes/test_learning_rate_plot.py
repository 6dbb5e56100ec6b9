"""The finder's plot, where Matplotlib is installed."""

import numpy as np
import pytest

from kattn.callbacks import LearningRateCurve


@pytest.mark.parametrize(("name", "head"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_plot(tmp_path, name, head):
    rates = np.geomspace(1e-5, 1.0, 30)
    losses = (np.log10(rates) + 2) ** 2
    curve = LearningRateCurve(rates, losses, losses + 0.1, 3)
    curve.plot(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(head)
    if name.endswith("svg"):
        assert b"minimum" in content
