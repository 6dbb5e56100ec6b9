"""What tests of recipes share."""

import pytest


@pytest.fixture
def steps_are_not_timed(monkeypatch):
    """A report takes each training step to last a quarter of a second, which saves the turns."""
    from recipes.harness import comparison_report

    monkeypatch.setattr(
        comparison_report, "measure_steps", lambda models, batches: dict.fromkeys(models, 0.25)
    )
