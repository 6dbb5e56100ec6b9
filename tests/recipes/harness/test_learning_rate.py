"""The rate that a range test finds, and its plot."""

import pytest

from kattn.callbacks import LearningRateFinder
from recipes import harness


class Curve:
    """As a range test returns it, whose plot may fail."""

    suggestions = {"valley": 0.25, "minimum": 0.5}  # noqa: RUF012 - nobody changes it

    def __init__(self, fault):
        self.fault = fault

    def plot(self, path):
        path.write_bytes(b"half")
        if self.fault:
            raise self.fault


@pytest.mark.parametrize("fault", [None, RuntimeError("no room")])
def test_a_fault_in_the_plot_costs_the_plot(tmp_path, monkeypatch, capsys, fault):
    tests = []
    monkeypatch.setattr(LearningRateFinder, "run", lambda *_, **__: tests.append(1) or Curve(fault))
    folder = harness.RunFolder(tmp_path)
    assert [harness.find_rate(None, None, folder) for _ in range(2)] == [0.25, 0.25]
    assert len(tests) == 1
    report = harness.rate_section(folder)
    assert "a peak of 0.25, which" in report
    assert ("![Loss over learning rate](lr_find.png)" in report) == (fault is None)
    assert ("**lr_find.png is missing**" in report) == (fault is not None)
    assert (tmp_path / "lr_find.png").is_file() == (fault is None)
    assert ("no room" in capsys.readouterr().err) == (fault is not None)
