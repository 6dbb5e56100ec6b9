"""The recipe from the command line, on a handful of images: result, resume, and bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from kattn import visualize
from recipes import harness, image_classification
from recipes.data import images
from recipes.data.image_batches import Splits, scale, training_batches
from tests.recipes import killed_recipe

TINY = [
    *("--seeds", "2"),
    *("--epochs", "3"),
    *("--batch-size", "8"),
    *("--filters", "4", "6"),
    *("--attention-after", "0"),
    *("--num-heads", "1"),
]


@pytest.fixture
def dataset(tmp_path):
    """Forty images of 6 x 5 pixels: bright on the left or on the right, in noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 15), ("test", 5)):
        for label, side in (("left", 0), ("right", 3)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (6, 5), "uint8")
                pixels[:, side : side + 2] += 150
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"folder:{tmp_path / 'data'}"


@pytest.fixture
def command(dataset, tmp_path):
    """The command's fixed part: data, sizes and output."""
    return ["--dataset", dataset, *TINY, "--shift", "0", "--output", str(tmp_path / "run")]


def results(run):
    """What each model and seed learnt, without times."""
    found = {}
    for path in sorted((run / "history").glob("*-seed?.json")):
        result = json.loads(path.read_text())
        for epoch in result["epochs"]:
            del epoch["seconds"]
        found[path.stem] = result
    return found


def numbers(result):
    flat = [value for epoch in result["epochs"] for value in epoch.values()]
    return [*flat, *result["test"].values(), *result["learnt"]["gamma"].values()]


def test_a_run_leaves_a_folder_with_everything(command, tmp_path, capsys):
    assert image_classification.main(command) == 0
    run = tmp_path / "run"
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    names = [f"{kind}-seed{seed}" for kind in ("cnn", "sa_cnn") for seed in (0, 1)]
    assert files == {
        "settings.json",
        "report.md",
        "curves.png",
        "stage0_attention.png",
        *(f"history/{name}.json" for name in names),
        *(f"checkpoints/{name}.keras" for name in names),
    }
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["filters"], settings["shift"]) == ([4, 6], 0)
    assert settings["backend"] == keras.backend.backend()

    found = results(run)
    assert all(len(result["epochs"]) == 3 for result in found.values())
    assert found["cnn-seed0"]["epochs"][0] != found["cnn-seed1"]["epochs"][0]
    assert found["sa_cnn-seed0"]["learnt"]["gamma"]["stage0_attention"] != 0

    report = (run / "report.md").read_text()
    out = capsys.readouterr().out
    verdict = re.search(r"\*\*(CNN \+ self-attention against CNN: .*)\*\*", report).group(1)
    assert verdict in out
    assert f"Report: {run / 'report.md'}" in out
    split = "own folders train and test; 2 classes from the folders at level 2, ['left', 'right']"
    assert f"{command[1]}: the source's {split}\n" in out
    assert f"Split: `the source's {split}`." in " ".join(report.split())
    mean = np.mean([found[f"cnn-seed{seed}"]["test"]["accuracy"] for seed in (0, 1)])
    assert f"| CNN | {100 * mean:.2f} ± " in report
    loaded = keras.saving.load_model(run / "checkpoints/sa_cnn-seed1.keras")
    assert f"{loaded.count_params():,}" in report
    data = images.load(command[1])
    test = image_classification.evaluate(data.x_test, data.y_test, 8, loaded)
    assert test == pytest.approx(found["sa_cnn-seed1"]["test"], rel=1e-4)


class Stop:
    """Ctrl-C as soon as the given number of epochs is done."""

    def __init__(self, monkeypatch, epochs):
        self.left = epochs
        epoch = harness.Progress.epoch

        def stop(progress, number, values):
            epoch(progress, number, values)
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(harness.Progress, "epoch", stop)


@pytest.mark.usefixtures("steps_are_not_timed")
def test_resumed_run_equals_an_unbroken_one(command, tmp_path, monkeypatch, capsys, write_again):
    command = [*command, "--seeds", "1"]
    assert image_classification.main(command) == 0
    expected = results(tmp_path / "run")

    run = tmp_path / "stopped"
    command = [*command, "--output", str(run), "--checkpoint-every", "2"]
    with monkeypatch.context() as patch:
        Stop(patch, epochs=5)  # the first fit is done, the second is at the end of its third epoch
        assert image_classification.main(command) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert not (run / "report.md").exists()
    first = (run / "history/cnn-seed0.json").read_bytes()
    assert image_classification.main([*command, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "CNN, seed 0" not in out
    assert "CNN + self-attention, seed 0 (1 of 1): epoch 2/3" not in out  # there is its backup
    assert "CNN + self-attention, seed 0 (1 of 1): epoch 3/3" in out
    assert (run / "history/cnn-seed0.json").read_bytes() == first
    found = results(run)
    assert list(found) == list(expected)
    for name, result in found.items():
        assert numbers(result) == numbers(expected[name])
    assert not (run / "backups").exists()

    report = (run / "report.md").read_bytes()
    assert image_classification.main([*command, "--resume"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert (run / "report.md").read_bytes() == report
    write_again(image_classification.main, command, run)


@pytest.mark.usefixtures("steps_are_not_timed")
def test_killed_in_an_epoch(dataset, tmp_path):
    """By SIGKILL, in a process of its own, which the same command with --resume goes on from."""
    run = tmp_path / "run"
    fixed = ["--dataset", dataset, *TINY, "--seeds", "1", "--shift", "0", "--checkpoint-every", "1"]
    command = [sys.executable, "-c", KILLED, *fixed, "--output", str(run)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (backup,) = sorted((run / "backups/cnn-seed0").iterdir())[-1:]
    assert image_classification.main([*fixed, "--output", str(run), "--resume"]) == 0
    whole = tmp_path / "whole"
    assert image_classification.main([*fixed, "--output", str(whole)]) == 0
    assert killed_recipe.differences(run, whole) == []
    assert not backup.exists()


KILLED = """
import os, signal, sys
import tests.conftest  # so that it is compiled as here, and rounds alike
import kattn.callbacks.backup.files as files
write = files.write

def die(directory, epoch, step, state, *, keep):
    write(directory, epoch, step, state, keep=keep)
    if (epoch, step) == (1, 1):
        os.kill(os.getpid(), signal.SIGKILL)

files.write = die
from recipes import image_classification
image_classification.main(sys.argv[1:])
"""

NAMES = (b"$\\frac$", b"caf\xe9 `|` <b>\n")  # the second is no UTF-8


@pytest.mark.usefixtures("steps_are_not_timed")
def test_names_are_taken_as_they_are(tmp_path, capsys, monkeypatch, write_again):
    """Of classes and of folders: nothing fails that is known before the training."""
    data = os.fsencode(tmp_path) + b"/$x^$ \xff|*a*"
    for number, name in enumerate(NAMES):
        folder = Path(os.fsdecode(data + b"/" + name))
        folder.mkdir(parents=True)
        for image in range(10):
            pixels = np.full((6, 5), 90 * number + image, "uint8")
            Image.fromarray(pixels).save(folder / f"{image}.png")
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run \xfe"))
    dataset = "folder:" + os.fsdecode(data)
    small = ["--models", "sa_cnn", "--seeds", "1", "--epochs", "1", "--batch-size", "4"]
    command = ["--dataset", dataset, *TINY, *small, "--keep", "best", "--output", str(run)]
    drawn, draw = [], visualize.attention_figure
    monkeypatch.setattr(
        visualize,
        "attention_figure",
        lambda *given, titles: drawn.extend(titles) or draw(*given, titles=titles),
    )
    assert image_classification.main(command) == 0
    classes = (r"caf\xe9 `|` <b>\n", r"$\frac$")
    assert [title.partition("\ntaken for ")[0] for title in drawn] == sorted(classes)
    printed = capsys.readouterr()
    shown = f"folder:{tmp_path}/$x^$ \\xff|*a*"
    said, about, *_ = printed.out.splitlines()
    assert said.startswith(f"{shown}: no splits in the source")
    assert about.startswith(f"`{shown}`: 15 + 1 + 4 images")
    assert "warning" not in printed.err
    report = (run / "report.md").read_text(encoding="utf-8")
    assert report.startswith(f"# Image classification on `{shown}`, without")
    cell = shown.replace("|", "\\|")
    assert f"| dataset | `{cell}` |" in report
    assert "is missing" not in report
    assert (run / "stage0_attention.png").is_file()
    assert json.loads((run / "settings.json").read_text())["dataset"] == dataset
    write_again(image_classification.main, command, run)


TRAINING = {
    "one_cycle": ["--schedule", "one_cycle", "--clip", "global_norm:0.5"],
    "stable": ["--schedule", "stable", "--clip", "autoclip"],
    "lr_find": ["--schedule", "flat", "--lr-find"],
}


@pytest.mark.usefixtures("steps_are_not_timed")
@pytest.mark.parametrize("case", TRAINING)
def test_ways_to_train(command, tmp_path, case):
    assert image_classification.main([*command, "--seeds", "1", *TRAINING[case]]) == 0
    run = tmp_path / "run"
    epochs = results(run)["cnn-seed0"]["epochs"]
    report = (run / "report.md").read_text()
    assert ("grad_norm" in epochs[0]) == ("--clip" in TRAINING[case])
    assert f"| schedule | {TRAINING[case][1]} |" in report
    if case == "one_cycle":
        assert 0.85 <= epochs[1]["beta_1"] <= 0.95
    peak = json.loads((run / "lr_find.json").read_text())["valley"] if case == "lr_find" else 3e-3
    assert 0 < max(epoch["learning_rate"] for epoch in epochs) <= peak * (1 + 1e-6)
    assert (run / "lr_find.png").is_file() == (case == "lr_find")
    assert (f"a peak of {peak:.3g}, which a range test" in report) == (case == "lr_find")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset", "folder:/no/such/folder"],
            "`dataset` must name a folder that exists; received: dataset=",
        ),
        (["--dataset", "imagenet"], "`dataset` must be digits, tfds:"),
        (["--classes-from", "1"], "`classes_from` must be a level of the folders in folder:"),
        (
            ["--attention-after", "7"],
            "must name stages 0 to 1",
        ),
        (["--epochs", "0"], "`epochs` must be an integer >= 1; received: epochs=0"),
        (["--seeds", "0"], "`seeds` must be an integer >= 1; received: seeds=0"),
        (["--shift", "-1"], "`shift` must be an integer >= 0; received: shift=-1"),
        (["--batch-size", "5000"], "`batch_size` must be at most the number of images to fit"),
        (
            ["--checkpoint-every", "0"],
            "`checkpoint_every` must be an integer >= 1; received: checkpoint_every=0",
        ),
        (["--clip", "median:1"], "`clip` must be one of value, norm, global_norm"),
        (
            ["--clip", "norm:small"],
            "`clip` must have a number after the colon; received: clip='norm:small'",
        ),
        (["--clip", "norm:-1"], "threshold"),
        (["--resume"], "`resume` needs a run that was started with these settings"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert image_classification.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_the_backend_is_chosen_before_keras_is_imported():
    code = (
        "import sys; from recipes import harness, image_classification as recipe; "
        "harness.parse('x', recipe.Settings, ['--clip', 'norm:1'], recipe.presets); "
        "print('keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_attention_at_all():
    settings = image_classification.Settings(attention_after=())
    with pytest.raises(ValueError, match=r"`attention_after` must name at least one stage.*=\(\)"):
        settings.check()


def test_an_earlier_result_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "report.md").write_text("earlier")
    assert image_classification.main(["--output", str(tmp_path)]) == 2
    assert "`output` must be a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_the_level_of_the_classes_is_a_flag(command, capsys):
    assert image_classification.main([*command, "--classes-from", "3"]) == 2
    assert "received: dataset='folder:" in (error := capsys.readouterr().err)
    assert "classes_from=3, top folders=['test', 'train']" in error
    with pytest.raises(SystemExit):
        image_classification.main(["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--classes-from {None}|INT level of the folders that are classes, 1 at the top" in words


def test_unknown_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        image_classification.main(["--epoch-count", "3"])
    assert stopped.value.code == 2


def parse(arguments):
    settings = image_classification.Settings
    return harness.parse("x", settings, arguments, image_classification.presets)


def test_defaults_follow_the_data_set():
    settings = parse(["--dataset", "tfds:mnist", "--epochs", "9"])
    assert (settings.epochs, settings.batch_size, settings.shift) == (9, 128, 2)
    assert parse([]) == image_classification.Settings()
    assert parse(["--dataset", "zip:x"]).filters == (32, 64, 128)


def test_models_of_a_seed_start_equal_and_see_the_same_images():
    data = images.load("digits")
    settings = image_classification.Settings()
    splits = Splits.of(data, settings.batch_size)
    x = scale(data.x_test[:5])
    plain, attention = (
        image_classification.build(splits, settings, kind, seed=3).predict(x, verbose=0)
        for kind in image_classification.TITLES
    )
    np.testing.assert_allclose(plain, attention, rtol=1e-5, atol=1e-6)
    first, again = (training_batches(splits, settings.batch_size, 3) for _ in range(2))
    assert len(first) == 1080 // 60
    np.testing.assert_array_equal(first[0][0], again[0][0])
    again.set_epoch(1)
    assert not np.array_equal(first[0][1], again[0][1])


def test_evaluate_counts_every_image_once():
    class Model:
        """Logits from the first pixel: class 1 where it is bright."""

        def predict(self, x, batch_size, verbose):
            assert len(x) % batch_size == 0
            return np.stack([0 * x[:, 0, 0, 0], x[:, 0, 0, 0]], -1)

    x = np.zeros((7, 2, 2, 1), "uint8")
    x[:3] = 255
    y = np.array([1, 1, 0, 0, 0, 0, 1])
    found = image_classification.evaluate(x, y, 2, Model())
    right, wrong = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["loss"] == pytest.approx((5 * right + 2 * wrong) / 7)
