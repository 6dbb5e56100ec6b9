"""What tests of recipes share."""

import pytest


@pytest.fixture
def steps_are_not_timed(monkeypatch):
    """A report takes each training step to last a quarter of a second, which saves the turns."""
    from recipes.harness import comparison_report

    monkeypatch.setattr(
        comparison_report, "measure_steps", lambda models, batches: dict.fromkeys(models, 0.25)
    )


def train(*arguments, **options):
    raise AssertionError("A run whose fits are done trains again")


@pytest.fixture
def write_again(monkeypatch):
    """Function that deletes reports and figures, which `--resume` writes again without training."""
    from recipes import harness
    from recipes.harness import comparison

    def check(main, command, run):
        written = {path: path.read_bytes() for path in [*run.rglob("*.md"), *run.rglob("*.png")]}
        assert run / "report.md" in written
        for path in written:
            path.unlink()
        with monkeypatch.context() as patch:
            for module in (harness, comparison):
                patch.setattr(module, "fit", train)
            assert main([*command, "--resume"]) == 0
        assert {path: path.read_bytes() for path in written} == written

    return check
