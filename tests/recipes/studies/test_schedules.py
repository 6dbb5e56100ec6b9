"""The study of schedules from the command line, tiny: result, resume, bad input; its schedules."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest

from recipes import harness
from recipes.studies import schedules as study

TINY = [
    *("--schedule", "one_cycle"),
    *("--seeds", "2"),
    *("--epochs", "2"),
    *("--batch-size", "400"),
    *("--hidden", "8"),
    *("--checkpoint-every", "7"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was not stopped, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert study.main([*TINY, "--output", str(run)]) == 0
    return run, printed.getvalue()


def results(run):
    """What each fit gave, without times."""
    fits = {path.stem: json.loads(path.read_text()) for path in (run / "history").glob("*.json")}
    for result in fits.values():
        for epoch in result["epochs"]:
            del epoch["seconds"]
    return fits


def rows(report, first):
    """Cells of the table whose first column has this name, by row."""
    table = re.search(rf"^\| {first} \|.*?\n\n", report, re.MULTILINE | re.DOTALL).group()
    lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_a_run_leaves_a_folder_with_everything(whole):
    run, printed = whole
    files = {str(path.relative_to(run)) for path in run.rglob("*")}
    names = [f"{kind}-seed{seed}" for kind in ("constant", "one_cycle") for seed in (0, 1)]
    assert files == {
        *("settings.json", "report.md", "history", "schedules.png", "results.png"),
        *(f"history/{name}.json" for name in names),
    }
    report = (run / "report.md").read_text()
    assert f"Report: {run / 'report.md'}" in printed
    said = re.search(r"^Test loss on digits, against .*$", report, re.MULTILINE).group()
    assert said in printed
    assert "The test images (597) were used once per run" in report
    assert "in 4 fits, with compilation." in report


def test_the_report_has_the_numbers_of_the_fits(whole):
    run, _ = whole
    report, found = (run / "report.md").read_text(), results(run)
    # Another schedule, from the same weights, gives another result; seeds differ.
    losses = {tuple(each["loss"] for each in result["epochs"]) for result in found.values()}
    assert len(losses) == 4
    assert {(result["peak"], result["steps"]) for result in found.values()} == {(3e-3, 2 * 3)}
    losses = {
        kind: np.array([found[f"{kind}-seed{seed}"]["test"]["loss"] for seed in (0, 1)])
        for kind in ("constant", "one_cycle")
    }
    table = rows(report, "Schedule")
    for kind, title in (("constant", "constant"), ("one_cycle", "one-cycle, fastai's")):
        mean, spread = losses[kind].mean(), losses[kind].std(ddof=1)
        assert table[title][1] == f"{mean:.4f} ± {spread:.4f}"
    difference = losses["one_cycle"] - losses["constant"]
    half = 12.7062047 * difference.std(ddof=1) / np.sqrt(2)  # the t of one degree of freedom
    low, high = difference.mean() - half, difference.mean() + half
    told = table["one-cycle, fastai's"][2].removesuffix(" *")
    assert told == f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


class Stop:
    """Ctrl-C in the given step of all that are left to do."""

    def __init__(self, monkeypatch, step):
        self.left = step
        step = harness.Progress.step

        def stop(progress):
            step(progress)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(harness.Progress, "step", stop)


def test_resumed_run_equals_an_unbroken_one(whole, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    command = [*TINY, "--output", str(run)]
    with monkeypatch.context() as patch:
        Stop(patch, 3 * 6 + 4)  # in the second epoch of one_cycle-seed1
        assert study.main(command) == 130
    assert "--resume goes on" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in (run / "history").iterdir()}
    assert len(before) == 3
    assert len(list((run / "backups").iterdir())) == 1  # of the fit that was stopped
    assert not (run / "report.md").exists()
    assert study.main([*command, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(run) == results(whole[0])

    report = (run / "report.md").read_bytes()
    assert study.main([*command, "--resume"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert (run / "report.md").read_bytes() == report


def test_a_fault_in_a_figure_costs_no_training(whole, tmp_path, monkeypatch, capsys, write_again):
    """Nor anything else: the report says so, and is written again without the fault."""

    def draw(*arguments, **options):
        raise RuntimeError("no room")

    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    command = [*TINY, "--output", str(run)]
    write_again(study.main, command, run)
    whole_report = (run / "report.md").read_text()
    (run / "report.md").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(harness, "results_figure", draw)
        assert study.main([*command, "--resume"]) == 0
    report = (run / "report.md").read_text()
    assert "**results.png is missing**, as making it failed: RuntimeError: no room." in report
    assert len(report.splitlines()) == len(whole_report.splitlines())
    assert "warning: results.png is missing in the report" in capsys.readouterr().err


def test_one_schedule_with_one_seed_and_a_rate_that_is_found(tmp_path):
    run = tmp_path / "run"
    alone = ["--schedule", "constant", "--seeds", "1", "--lr-find", "--output", str(run)]
    assert study.main([*TINY, *alone]) == 0
    report = (run / "report.md").read_text()
    suggested = json.loads((run / "lr_find.json").read_text())
    assert results(run)["constant-seed0"]["peak"] == suggested["valley"] != 3e-3
    assert f"valley {suggested['valley']:.2g}, steepest" in report
    assert (run / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing was compared with constant" in report
    assert [path.name for path in (run / "history").iterdir()] == ["constant-seed0.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "cosine", "cosin"], "`schedule` must be one of constant, linear, "),
        (["--schedule", "cosine", "cosin"], "received: schedule='cosin'"),
        (["--schedule"], "`schedule` must name at least one schedule; received: schedule=()"),
        (["--seeds", "0"], "`seeds` must be an integer >= 1; received: seeds=0"),
        (["--hidden", "0"], "`hidden` must be an integer >= 1; received: hidden=0"),
        (["--batch-size", "5000"], "must fill at least one batch"),
        (["--resume"], "`resume` needs a run that was started with these settings"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert study.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_unknown_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        study.main(["--schedules", "cosine"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("steps", [10, 45, 270])
@pytest.mark.parametrize("name", study.SCHEDULES)
def test_schedules_have_one_peak(name, steps):
    schedule, momentum = study.make_schedule(name, 0.25, steps)
    rates = schedule(np.arange(steps))
    assert rates.max() <= 0.25 * (1 + 1e-12)
    top = 0.5 if name == "exp_range" else 0.8  # which has decayed when it is at its first top
    assert rates.max() >= top * 0.25
    assert rates.min() >= 0
    assert (momentum is not None) == (name in ("one_cycle", "smith_one_cycle"))
    if momentum is not None:
        assert np.argmin(momentum(np.arange(steps))) == np.argmax(rates)


def test_the_baseline_is_always_there():
    assert study.Settings(schedule=("cosine",)).compared == ("constant", "cosine")
    assert study.Settings().compared == tuple(study.SCHEDULES)
