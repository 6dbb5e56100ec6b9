"""The study of clipping from the command line, tiny: result, resume and bad input."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest

from kattn.callbacks import LearningRate
from kattn.schedules import Cosine
from recipes import harness
from recipes.data.text import load_text
from recipes.studies import clipping as study
from recipes.studies import spikes

TINY = [
    *("--clip", "global_norm", "spike_guard"),
    *("--seeds", "2"),
    *("--steps", "60"),
    *("--batch-size", "4"),
    *("--length", "6"),
    *("--width", "8"),
    *("--num-heads", "2"),
    *("--spikes", "30", "45"),
    *("--checkpoint-every", "7"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Lines of a's and b's, in which b follows a."""
    path = tmp_path_factory.mktemp("text") / "a*b*.txt"
    path.write_text("ab" * 400 + "\n" + "abab\n" * 100, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The folder of a run that was not stopped, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert study.main([*TINY, "--text", str(text), "--output", str(run)]) == 0
    return run, printed.getvalue()


@pytest.fixture
def command(text, tmp_path):
    """The command of the same run, but for its folder."""
    return [*TINY, "--text", str(text), "--output", str(tmp_path / "run")]


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
    kinds = ("clean", "none", "global_norm", "spike_guard")
    names = [f"{kind}-seed{seed}" for kind in kinds for seed in (0, 1)]
    assert files == {
        *("settings.json", "report.md", "history"),
        *("results.png", "spikes.png", "norms.png"),
        *(f"history/{name}.json" for name in names),
    }
    report = (run / "report.md").read_text()
    assert f"Report: {run / 'report.md'}" in printed
    for verdict in ("Validation loss on text with spikes", "The same"):
        said = re.search(rf"^{verdict}, against .*$", report, re.MULTILINE).group()
        assert said in printed
    words = " ".join(report.split())
    assert "At steps 30, 45 the batch is corrupted: targets permuted at random, weight 100" in words
    assert "Text: `a*b*.txt`, 1,301 characters, of which 3 are different" in words
    assert "times that it went back: not run" in words


def test_the_report_has_the_numbers_of_the_fits(whole):
    run, _ = whole
    report, found = (run / "report.md").read_text(), results(run)
    # Before the first spike nothing differs but what clipping does; the spike is seen.
    clean, none, clipped, guarded = (
        found[f"{kind}-seed1"] for kind in ("clean", "none", "global_norm", "spike_guard")
    )
    assert none["losses"][:30] == pytest.approx(clean["losses"][:30], rel=1e-5)
    assert none["losses"][30] > 20 * clean["losses"][30]
    assert none["losses"][31:45] != pytest.approx(clean["losses"][31:45], rel=1e-3)
    assert (len(none["losses"]), len(none["norms"]["norm"])) == (60, 60)
    assert none["norms"]["norm"][30] > 10 * none["norms"]["norm"][29]
    assert none["norms"]["clipped_norm"] == none["norms"]["norm"]
    assert max(clipped["norms"]["clipped_norm"]) == pytest.approx(2.0, rel=1e-5)
    assert guarded["skipped"][0] == 30
    assert guarded["losses"][31] == pytest.approx(clean["losses"][31], rel=0.05)
    table = rows(report, "Clipping")
    loss = [found[f"spike_guard-seed{seed}"]["test"]["loss"] for seed in (0, 1)]
    assert table["SpikeGuard, skips"][0] == f"{np.mean(loss):.4f} ± {np.std(loss, ddof=1):.4f}"
    heights = [
        np.mean([each.height for each in spikes.recoveries(result["losses"], (30, 45))])
        for result in (found["none-seed0"], none)
    ]
    assert table["none"][3] == f"{np.mean(heights):.3f} ± {np.std(heights, ddof=1):.3f}"


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


def test_resumed_run_equals_an_unbroken_one(whole, command, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        Stop(patch, 7 * 60 + 38)  # in spike_guard-seed1, after a spike
        assert study.main(command) == 130
    assert "--resume goes on" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in (run / "history").iterdir()}
    assert len(before) == 7
    assert len(list((run / "backups").iterdir())) == 1  # of the fit that was stopped
    assert not (run / "report.md").exists()
    with monkeypatch.context() as patch:
        steps = []
        patch.setattr(harness.Progress, "step", lambda progress: steps.append(progress.label))
        assert study.main([*command, "--resume"]) == 0
    assert set(steps) == {"spike_guard-seed1"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    fits, expected = results(run), results(whole[0])
    assert fits["spike_guard-seed1"]["skipped"]
    assert fits == expected

    report = (run / "report.md").read_bytes()
    assert study.main([*command, "--resume"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert (run / "report.md").read_bytes() == report


def test_a_fault_in_a_figure_costs_no_training(
    whole, tmp_path, monkeypatch, capsys, write_again, text
):
    """Nor anything else: the report says so, and is written again without the fault."""

    def draw(*arguments, **options):
        raise RuntimeError("no room")

    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    command = [*TINY, "--text", str(text), "--output", str(run)]
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "norms"], "`clip` must be one of none, global_norm, "),
        (["--clip"], "`clip` must name at least one way of clipping; received: clip=()"),
        (["--text", "/no/such/file"], "`text` must name a file that exists; received: text='/no"),
        (["--text", "short.txt"], "`text` must be more than ten times as long as a batch"),
        (["--text", "one.txt"], "`text` must have at least two different characters; received: ch"),
        (["--text", "latin.txt"], "`text` must name a file in UTF-8; received: text='latin.txt'"),
        (["--seeds", "0"], "`seeds` must be an integer >= 1; received: seeds=0"),
        (["--steps", "9"], "`steps` must be an integer >= 10; received: steps=9"),
        (
            ["--width", "12"],
            "`width` must be an even multiple of num_heads; received: width=12, num_heads=4",
        ),
        (["--spikes", "9"], "`spikes` must be steps with at least 10 before, between and after"),
        (["--spikes", "20", "30"], "received: spikes=(20, 30), steps=300"),
        (["--spikes", "290"], "received: spikes=(290,), steps=300"),
        (["--spikes"], "received: spikes=(), steps=300"),
        (["--resume"], "`resume` needs a run that was started with these settings"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("ab" * 2560)
    (tmp_path / "one.txt").write_text("a" * 9999)
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1") * 9999)
    assert study.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert len(list(tmp_path.iterdir())) == 3


def test_the_baselines_are_always_there():
    assert study.Settings(clip=("zclip", "agc")).compared == ("clean", "none", "agc", "zclip")
    assert study.Settings(clip=("none",)).compared == ("clean", "none")


def test_a_model_starts_anew(text):
    """The second fit of a compiled model is that of a new one, its rules' state included."""
    settings = study.Settings(steps=12, batch_size=4, length=6, width=8, num_heads=2)
    found = load_text(text, 6, 4)
    restartable = harness.Restartable(study.build(found, settings, seed=0))
    weights = study.build(found, settings, seed=1).get_weights()
    histories = []
    for _ in range(2):
        model = restartable.restart(weights)
        callbacks = [
            LearningRate(Cosine(0.01, 0.0, 12)),
            *study.clip_callbacks("zclip"),
        ]
        data = study.training_batches(found, settings, 0, ())
        history = model.fit(data, shuffle=False, verbose=0, callbacks=callbacks).history
        histories.append((history, callbacks[-1].history, [w.sum() for w in model.get_weights()]))
    assert histories[0] == histories[1]
    assert len(histories[0][1]["norm"]) == 12
