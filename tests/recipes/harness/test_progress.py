"""Progress with and without a terminal."""

import io
import sys

from recipes import harness


def test_progress_prints_a_line_per_epoch_without_a_terminal(capsys):
    progress = harness.Progress("fit", epochs=2, steps=3)
    for epoch in (1, 2):
        for _ in range(3):
            progress.step()
        progress.epoch(epoch, {"loss": 0.123456})
    progress.close()
    printed = capsys.readouterr()
    assert printed.out == "fit: epoch 1/2  loss 0.1235\nfit: epoch 2/2  loss 0.1235\n"
    assert printed.err == ""


def test_progress_draws_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = harness.Progress("fit", epochs=4, steps=5, first_epoch=2)
    for _ in range(10):
        progress.step()
    progress.epoch(4, {"loss": 0.5})
    progress.close()
    assert "10/20" in terminal.getvalue()  # goes on from epoch 2
    assert "20/20" in terminal.getvalue()
    assert "loss 0.5" in terminal.getvalue()
    assert capsys.readouterr().out == ""
