"""The recipe from the command line, on a handful of texts: result, grid, pretrained, bad input."""

import json

import keras
import numpy as np
import pytest

from recipes import harness, text_classification

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("steps_are_not_timed")

TINY = [
    *("--seeds", "1"),
    *("--epochs", "2"),
    *("--batch-size", "4"),
    *("--length", "6"),
    *("--vocabulary-size", "300"),
    *("--num-layers", "1"),
    *("--num-heads", "2"),
    *("--width", "8"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Forty texts, in which one word tells the class."""
    root = tmp_path_factory.mktemp("texts") / "$t$"
    for label, word in (("good", "lovely"), ("bad", "awful")):
        (root / label).mkdir(parents=True)
        for i in range(20):
            (root / label / f"{i}.txt").write_text(f"{word} film no {i}", encoding="utf-8")
    return f"folder:{root}"


def command(dataset, output, *arguments):
    return [*TINY, "--dataset", dataset, "--output", str(output), *arguments]


def run(dataset, output, *arguments):
    assert text_classification.main(command(dataset, output, *arguments)) == 0
    return (output / "report.md").read_text()


def result(path):
    return json.loads(path.read_text())


def test_a_run_leaves_a_folder_with_everything(dataset, tmp_path, write_again):
    output = tmp_path / "run"
    report = run(dataset, output)
    words = " ".join(report.split())
    assert report.startswith(f"# Text classification: `{dataset}`\n")
    assert f"`{dataset}`: 27 texts to fit, 5 to validate and 8 to test, 2 classes" in words
    for kind, title in (("lstm", "LSTM"), ("transformer", "Transformer")):
        test = result(output / f"history/{kind}-seed0.json")["test"]
        row = f"| {title} | {100 * test['accuracy']:.2f} | {test['loss']:.3f} |"
        assert row in report
    assert "| bag of words | 100.00 |" in report
    assert "The test texts were used once per model and seed" in words
    write_again(text_classification.main, command(dataset, output), output)


def test_grid(dataset, tmp_path):
    """Each combination of dropout, batch size and learning rate, on the validation texts."""
    output = tmp_path / "run"
    options = ["--dropouts", "0.5", "--batch-sizes", "5", "--learning-rates", "1e-2"]
    report = run(dataset, output, "--grid", *options, "--epochs", "1")
    name = "dropout0.5-batch5-rate0.01"
    found = result(output / f"history/{name}-seed0.json")
    model = keras.saving.load_model(output / f"checkpoints/{name}-seed0.keras")
    assert (model.options.dropout, int(model.optimizer.iterations)) == (0.5, 27 // 5)
    (epoch,) = found["epochs"]
    assert found["test"]["accuracy"] == epoch["val_accuracy"]
    assert f"| dropout0.5, batch5, rate0.01 | {100 * epoch['val_accuracy']:.2f} |" in report
    assert "| Model | Validation accuracy, % | Validation loss |" in report
    assert "The test texts were not used." in " ".join(report.split())
    settings = text_classification.Settings(dropouts=(0, 0.1), batch_sizes=(8, 9, 10))
    variants = text_classification.grid(settings)
    assert len(variants) == 2 * 3 * 3
    chosen = variants["dropout0.1-batch9-rate0.003"]
    assert (chosen.dropout, chosen.batch_size, chosen.learning_rate) == (0.1, 9, 3e-3)


@pytest.fixture
def bert(dataset, tmp_path):
    """A folder as Hugging Face's libraries write it: settings, weights and a tokenizer."""
    presets = pytest.importorskip("kattn.presets")
    from kattn.layers import LearnedPositions
    from kattn.models import TransformerClassifier
    from kattn.text import Subwords

    keras.utils.set_random_seed(1)
    model = TransformerClassifier(
        300,
        3,
        1,
        2,
        8,
        position=LearnedPositions(16),
        padding_token=0,
        placement="post",
        pooling="first",
        use_pooler=True,
        num_token_types=2,
        use_embedding_norm=True,
    )
    model.build((None, None))
    folder = tmp_path / "bert"
    presets.to_huggingface(model, folder)
    Subwords.train(["lovely film", "awful film"], 300).save(folder / "tokenizer.json")
    return model, folder


def test_pretrained(bert, dataset, tmp_path, write_again):
    model, folder = bert
    output = tmp_path / "run"
    options = ["--pretrained", str(folder), "--labels", "2", "5", "--epoch-texts", "8"]
    report = run(dataset, output, *options, "--epochs", "1")
    head = "|  | labels-2: test accuracy, % | labels-2: test loss | labels-5: test accuracy, % |"
    assert head in report
    assert "labels-5: pretrained against from scratch: the test accuracy is" in report
    part = (output / "labels-2/report.md").read_text()
    assert "4 texts to fit, 5 to validate" in " ".join(part.split())
    assert "| network | TransformerClassifier |" in part
    settings = text_classification.Settings(dataset=dataset, pretrained=folder, length=6)
    task = text_classification.read(settings)
    variants = dict.fromkeys(text_classification.STARTS, settings)
    scratch, pretrained = (text_classification.build(task, variants, kind, 0) for kind in variants)
    for one, other in zip(pretrained.get_weights(), scratch.get_weights(), strict=True):
        if one.ndim == 2 and one.shape[-1] != 2:  # a matrix or table, not the head
            is_loaded = [
                any(np.array_equal(array, weight) for weight in model.get_weights())
                for array in (one, other)
            ]
            assert is_loaded == [True, False]
    given = command(dataset, output, *options, "--epochs", "1")
    write_again(text_classification.main, given, output)


def test_defaults_follow_the_data_set():
    def parse(*arguments):
        settings = text_classification.Settings
        return harness.parse("x", settings, arguments, text_classification.presets)

    assert parse() == text_classification.Settings()
    assert (parse("--dataset", "tfds:imdb_reviews").length, parse("--grid").length) == (256, 64)
    both = parse("--dataset", "folder:x", "--pretrained", "y", "--epochs", "9")
    assert (both.length, both.epochs, both.dropout) == (128, 9, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "folder:/no/such/folder"], "`dataset` must name a folder that exists"),
        (["--dataset", "imdb"], "`dataset` must be scipy, tfds:"),
        (["--classes-from", "1"], "`classes_from` must be a level of the folders in folder:"),
        (["--length", "0"], "`length` must be an integer >= 1; received: length=0"),
        (["--grid", "--dropouts"], "`dropouts` must not be empty"),
        (["--labels", "0"], "`labels` must be an integer >= 1; received: labels=0"),
        (["--grid", "--pretrained", "x"], "`grid` and `pretrained` must not be given together"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert text_classification.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_the_level_of_the_classes_is_a_flag(dataset, capsys):
    assert text_classification.main(["--dataset", dataset, "--classes-from", "2"]) == 2
    assert "classes_from=2, top folders=['bad', 'good']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        text_classification.main(["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--classes-from {None}|INT level of the folders that are classes, 1 at the top" in words


def test_how_a_folder_was_read_is_said_before_the_training(dataset, capsys):
    text_classification.read(text_classification.Settings(dataset=dataset))
    assert capsys.readouterr().out == (
        f"{dataset}: no splits in the source: 20% of each class, drawn with seed 0; "
        "2 classes from the folders at level 1, ['bad', 'good']\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "9"], "`width` must be divisible by `num_heads`"),
        (
            ["--grid", "--lr-find", "--batch-sizes", "4"],
            "`lr_find` must not be given where each kind",
        ),
        (["--batch-size", "500"], "must fill at least one batch"),
        (["--vocabulary-size", "100"], "`vocabulary_size` must be an integer >= 258"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(dataset, tmp_path, capsys, arguments, message):
    command = [*TINY, "--dataset", dataset, "--output", str(tmp_path / "run"), *arguments]
    assert text_classification.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
