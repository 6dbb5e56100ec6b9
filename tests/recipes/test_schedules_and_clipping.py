"""The recipe from the command line, tiny: result, resume, bad input; and its statistics."""

import contextlib
import io
import json
import re

import numpy as np
import pytest

from recipes import harness
from recipes import schedules_and_clipping as recipe

TINY = [
    *("--schedule", "one_cycle"),
    *("--clip", "global_norm", "spike_guard"),
    *("--seeds", "2"),
    *("--digits-epochs", "2"),
    *("--digits-batch", "400"),
    *("--hidden", "8"),
    *("--text-steps", "60"),
    *("--text-batch", "4"),
    *("--length", "6"),
    *("--width", "8"),
    *("--num-heads", "2"),
    *("--spikes", "30", "45"),
    *("--checkpoint-every", "7"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Lines of a's and b's, in which b follows a."""
    path = tmp_path_factory.mktemp("text") / "ab.txt"
    path.write_text("ab" * 400 + "\n" + "abab\n" * 100, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The folder of a run that was not stopped, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert recipe.main([*TINY, "--text", str(text), "--output", str(run)]) == 0
    return run, printed.getvalue()


@pytest.fixture
def command(text, tmp_path):
    """The command of the same run, but for its folder."""
    return [*TINY, "--text", str(text), "--output", str(tmp_path / "run")]


def results(run):
    """What each fit gave, without times."""
    found = {path.stem: json.loads(path.read_text()) for path in (run / "fits").glob("*.json")}
    for result in found.values():
        del result["seconds"]
    return found


def rows(report, first):
    """Cells of the table whose first column has this name, by row."""
    table = re.search(rf"^\| {first} \|.*?\n\n", report, re.MULTILINE | re.DOTALL).group()
    lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_a_run_leaves_a_folder_with_everything(whole):
    run, printed = whole
    files = {str(path.relative_to(run)) for path in run.rglob("*")}
    kinds = ["digits-constant", "digits-one_cycle"]
    kinds += ["text-clean", "text-none", "text-global_norm", "text-spike_guard"]
    names = [f"{kind}-seed{seed}" for kind in kinds for seed in (0, 1)]
    plots = ("schedules", "digits", "text", "spikes", "norms")
    assert files == {
        *("settings.json", "report.md", "fits"),
        *(f"{plot}.png" for plot in plots),
        *(f"fits/{name}.json" for name in names),
    }
    report = (run / "report.md").read_text()
    assert f"Report: {run / 'report.md'}" in printed
    for verdict in ("Test loss on digits", "Validation loss on text with spikes", "The same"):
        said = re.search(rf"^{verdict}, against .*$", report, re.MULTILINE).group()
        assert said in printed


def test_the_report_on_digits_has_the_numbers_of_the_fits(whole):
    run, _ = whole
    report, found = (run / "report.md").read_text(), results(run)
    # Another schedule, from the same weights, gives another result; seeds differ.
    digits = {name: r for name, r in found.items() if name.startswith("digits")}
    assert len({tuple(result["epochs"]) for result in digits.values()}) == 4
    assert {(result["peak"], result["steps"]) for result in digits.values()} == {(3e-3, 2 * 3)}
    losses = {
        kind: np.array([found[f"digits-{kind}-seed{seed}"]["test"]["loss"] for seed in (0, 1)])
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


def test_the_report_on_text_has_the_numbers_of_the_fits(whole):
    run, _ = whole
    report, found = (run / "report.md").read_text(), results(run)
    # Before the first spike nothing differs but what clipping does; the spike is seen.
    clean, none, clipped, guarded = (
        found[f"text-{kind}-seed1"] for kind in ("clean", "none", "global_norm", "spike_guard")
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
    loss = [found[f"text-spike_guard-seed{seed}"]["test"]["loss"] for seed in (0, 1)]
    assert table["SpikeGuard, skips"][0] == f"{np.mean(loss):.4f} ± {np.std(loss, ddof=1):.4f}"
    heights = [
        np.mean([each.height for each in recipe.recoveries(result["losses"], (30, 45))])
        for result in (found["text-none-seed0"], none)
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
    # In the second epoch of digits-one_cycle-seed1, then in text-spike_guard-seed1 after a spike.
    for step, finished in ((3 * 6 + 4, 3), (3 + 7 * 60 + 38, 11)):
        with monkeypatch.context() as patch:
            Stop(patch, step)
            resume = ["--resume"] if run.exists() else []
            assert recipe.main([*command, *resume]) == 130
        assert "--resume goes on" in capsys.readouterr().err
        before = {path: path.stat().st_mtime_ns for path in (run / "fits").iterdir()}
        assert len(before) == finished
        assert len(list((run / "backups").iterdir())) == 1  # of the fit that was stopped
    assert not (run / "report.md").exists()
    with monkeypatch.context() as patch:
        steps = []
        patch.setattr(harness.Progress, "step", lambda progress: steps.append(progress.label))
        assert recipe.main([*command, "--resume"]) == 0
    assert set(steps) == {"text-spike_guard-seed1"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found, expected = results(run), results(whole[0])
    assert found["text-spike_guard-seed1"]["skipped"]
    assert found.keys() == expected.keys()
    for name, result in found.items():
        assert result == expected[name]

    report = (run / "report.md").read_bytes()
    assert recipe.main([*command, "--resume"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert (run / "report.md").read_bytes() == report


def test_one_part_alone_with_one_seed_and_a_rate_that_is_found(command, tmp_path):
    alone = ["--schedule", "constant", "--clip", "--seeds", "1", "--lr-find"]
    assert recipe.main([*command, *alone]) == 0
    run = tmp_path / "run"
    report = (run / "report.md").read_text()
    found = json.loads((run / "rate-digits.json").read_text())
    assert results(run)["digits-constant-seed0"]["peak"] == found["valley"] != 3e-3
    assert f"valley {found['valley']:.2g}, steepest" in report
    assert (run / "rate-digits.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing was compared with constant" in report
    assert "## B." not in report
    assert [path.name for path in (run / "fits").iterdir()] == ["digits-constant-seed0.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "cosine", "cosin"], "schedule must be of constant, linear, "),
        (["--schedule", "cosine", "cosin"], "schedule=cosin"),
        (["--clip", "norms"], "clip must be of none, global_norm, "),
        (["--schedule", "--clip"], "There must be something to compare: schedule=(), clip=()"),
        (["--text", "/no/such/file"], "text must name a file that exists: text='/no/such/file'"),
        (["--text", "short.txt"], "text must be more than ten times as long as a batch"),
        (["--text", "one.txt"], "text must have two different characters: characters='a'"),
        (["--text", "latin.txt"], "text must name a file in UTF-8: text='latin.txt'"),
        (["--seeds", "0"], "seeds must be at least 1: seeds=0"),
        (["--text-steps", "9"], "text_steps must be at least 10: text_steps=9"),
        (["--width", "12"], "width must be an even multiple of num_heads: width=12, num_heads=4"),
        (["--spikes", "9"], "spikes must be steps with at least 10 before, between and after"),
        (["--spikes", "20", "30"], "spikes=(20, 30), text_steps=300"),
        (["--spikes", "290"], "spikes=(290,), text_steps=300"),
        (["--spikes"], "spikes=(), text_steps=300"),
        (["--digits-batch", "5000"], "data must fill a batch"),
        (["--resume"], "resume needs a run that was started with these settings"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("ab" * 2560)
    (tmp_path / "one.txt").write_text("a" * 9999)
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1") * 9999)
    assert recipe.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert len(list(tmp_path.iterdir())) == 3


def test_unknown_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--schedules", "cosine"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("steps", [10, 45, 270])
@pytest.mark.parametrize("name", recipe.SCHEDULES)
def test_schedules_have_one_peak(name, steps):
    schedule, momentum = recipe.make_schedule(name, 0.25, steps)
    rates = schedule(np.arange(steps))
    assert rates.max() <= 0.25 * (1 + 1e-12)
    top = 0.5 if name == "exp_range" else 0.8  # which has decayed when it is at its first top
    assert rates.max() >= top * 0.25
    assert rates.min() >= 0
    assert (momentum is not None) == (name in ("one_cycle", "smith_one_cycle"))
    if momentum is not None:
        assert np.argmin(momentum(np.arange(steps))) == np.argmax(rates)


def test_baselines_are_always_there():
    settings = recipe.Settings(schedule=("cosine",), clip=("zclip", "agc"))
    assert recipe.with_baselines(settings) == (
        ("constant", "cosine"),
        ("clean", "none", "agc", "zclip"),
    )
    settings = recipe.Settings(schedule=(), clip=("none",))
    assert recipe.with_baselines(settings) == ((), ("clean", "none"))


def test_text_is_held_out_and_targets_come_next(text):
    found = recipe.load_text(text, length=6, batch=4)
    assert found.characters == "\nab"
    assert len(found.train) == 1171  # of 1301
    whole = "".join(found.characters[i] for i in [*found.train, *found.held_out])
    assert whole == text.read_text()
    x, y = found.to_validate(6, 4)
    assert x.shape == y.shape == (20, 6)
    np.testing.assert_array_equal(x.ravel(), found.held_out[:120])
    np.testing.assert_array_equal(y.ravel(), found.held_out[1:121])
    windows = found.windows(500, 6, seed=1)
    known = {tuple(found.train[i : i + 7]) for i in range(1171 - 6)}
    assert {tuple(window) for window in windows} <= known
    assert not np.array_equal(windows, found.windows(500, 6, seed=2))


def test_default_text_is_pythons_documentation():
    found = recipe.load_text(None, 64, 16)
    assert "documentation of Python 3." in found.name
    assert len(found.train) > 300_000


def test_corrupted_batches(text):
    settings = recipe.Settings(text_steps=30, text_batch=4, length=6, spike_weight=50.0)
    found = recipe.load_text(text, 6, 4)
    clean = recipe.text_batches(found, settings, 3, ())
    spiking = recipe.text_batches(found, settings, 3, (12,))
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
    (found,) = recipe.recoveries(losses, (20,))
    # The mean of ten steps is at most 2.02 once they are all after the 15 of 3.0.
    assert found.steps == 15
    assert found.height == pytest.approx(1.0)

    losses[36:] = 2.02
    assert recipe.recoveries(losses, (20,))[0].steps == 15
    losses[36:] = 2.021
    assert recipe.recoveries(losses, (20,))[0].steps is None

    losses = curve((20, 2.0), (1, 500.0), (40, 1.9))
    (found,) = recipe.recoveries(losses, (20,))
    assert found.steps == 0
    assert found.height == pytest.approx(-0.1)


def test_recovery_of_several_spikes():
    # The first has not recovered when the next comes, whose level before is the higher one.
    losses = curve((15, 2.0), (1, 9.0), (14, 2.5), (1, 9.0), (5, 2.9), (20, 2.5))
    first, second = recipe.recoveries(losses, (15, 30))
    assert first == recipe.Recovery(pytest.approx(0.5), None)
    assert second == recipe.Recovery(pytest.approx(0.2), 5)
    found = [first, second, recipe.Recovery(0.0, 7)]
    assert recipe.recovered(found) == "7 (5 to not), not: 1 of 3"
    assert recipe.recovered(found[1:]) == "5 (5 to 7)"
    assert recipe.recovered(found[:1]) == "not (not to not), not: 1 of 1"


def test_clipped_leaves_corrupted_steps_out():
    norms = {"norm": [1.0, 3.0, 9.0, 1.0, 5.0], "clipped_norm": [1.0, 2.0, 2.0, 1.0, 2.0]}
    assert recipe.clipped([{"norms": norms}], (2,)) == "50"


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
def test_verdict(others, words):
    titles = {"base": "the base", "a": "A", "b": "B"}
    base = [1.0, 2.0, 3.0][: len(others.get("a", range(3)))]
    assert words in recipe.verdict("Loss", "base", {"base": base, **others}, titles)


def test_a_model_starts_anew(text):
    """The second fit of a compiled model is that of a new one, its rules' state included."""
    settings = recipe.Settings(text_steps=12, text_batch=4, length=6, width=8, num_heads=2)
    found = recipe.load_text(text, 6, 4)
    restartable = recipe.Restartable(recipe.build_text(found, settings, seed=0))
    weights = recipe.build_text(found, settings, seed=1).get_weights()
    histories = []
    for _ in range(2):
        model = restartable.restart(weights)
        callbacks = [
            *recipe.schedule_callbacks("cosine", 0.01, 12),
            *recipe.clip_callbacks("zclip"),
        ]
        data = recipe.text_batches(found, settings, 0, ())
        history = model.fit(data, shuffle=False, verbose=0, callbacks=callbacks).history
        histories.append((history, callbacks[-1].history, [w.sum() for w in model.get_weights()]))
    assert histories[0] == histories[1]
    assert len(histories[0][1]["norm"]) == 12
