"""The recipe from the command line, on short sequences: result, resume, windows and bad input."""

import json

import keras
import numpy as np
import pytest

from kattn import backend
from recipes import harness, sequence_memory
from recipes.data import sequence_memory as memory
from recipes.harness import remembering

TINY = [
    *("--seeds", "1"),
    *("--epochs", "1"),
    *("--epoch-steps", "3"),
    *("--batch-size", "4"),
    *("--vocabulary-size", "12"),
    *("--length", "8"),
    *("--pairs", "1", "2"),
    *("--width", "8"),
]
KINDS = ("lstm", "lstm-attention")


@pytest.fixture(autouse=True)
def few_sequences(monkeypatch):
    for name, count in {"VALIDATED": 4, "TESTED": 8}.items():
        monkeypatch.setattr(sequence_memory, name, count)
    monkeypatch.setattr(remembering, "DRAWN", 2)


def parse(*arguments):
    settings = sequence_memory.Settings
    return harness.parse("x", settings, arguments, sequence_memory.presets)


@pytest.mark.usefixtures("steps_are_not_timed")
def test_a_run_leaves_a_folder_with_everything(tmp_path, write_again):
    run = tmp_path / "run"
    swept = [f"lstm-attention-w{window}" for window in (2, 4)]
    command = [*TINY, "--models", *KINDS, *swept, "--sweep-windows", "2", "4"]
    command += ["--pairs", "2", "1"]  # the score is that of the most pairs, wherever they stand
    command += ["--output", str(run)]
    assert sequence_memory.main(command) == 0
    results = {
        kind: json.loads((run / f"history/{kind}-seed0.json").read_text())["test"]
        for kind in (*KINDS, *swept)
    }
    report = (run / "report.md").read_text()
    assert report.startswith("# Sequence memory: recall, 12 tokens, 8 steps, 1, 2 pairs\n")
    titles = "LSTM | LSTM + attention | LSTM + attention, window 2 | LSTM + attention, window 4"
    assert f"| Pairs | one of the values, at random | {titles} |" in report
    for pairs, guess in ((1, "100.00"), (2, "50.00")):
        found = (f"{100 * each[f'accuracy_{pairs}']:.2f}" for each in results.values())
        assert f"| {pairs} | {guess} | {' | '.join(found)} |" in report
    assert (
        f"| LSTM | {100 * results['lstm']['accuracy_2']:.2f} | {results['lstm']['loss']:.4f} |"
        in report
    )
    assert "| one of the values, at random | 50.00 | 0.4621 |" in report  # 2/3 of log 2
    for name in ("levels", "windows", "reach", "curves"):
        assert f"({name}.png)" in report
        assert (run / f"{name}.png").is_file()
    assert "| LSTM + attention, untrained | " in report
    assert "LSTM + attention has with 8 channels: LSTM 10, LSTM + attention 8" in " ".join(
        report.split()
    )
    write_again(sequence_memory.main, command, run)


@pytest.mark.parametrize("fill", ["blank", "random"])
def test_steps_between_are_filled_as_asked(monkeypatch, fill):
    compared = []
    monkeypatch.setattr(
        harness, "compare", lambda comparison, settings: compared.append(comparison)
    )
    sequence_memory.prepare(parse(*TINY, "--length", "16", "--models", "lstm", "--fill", fill))
    tokens, labels, _ = compared[0].batches("lstm", 0)[0]
    between = tokens[:, 4:][labels[:, 4:] == 0]
    assert between.any() == (fill == "random")


@pytest.mark.usefixtures("steps_are_not_timed")
def test_copying(tmp_path):
    run = tmp_path / "run"
    flags = ["--task", "copy", "--delay", "3", "--models", "attention"]
    assert sequence_memory.main([*TINY, *flags, "--output", str(run)]) == 0
    report = (run / "report.md").read_text()
    assert "# Sequence memory: copy, 10 tokens, 23 steps, 3 steps of delay\n" in report
    assert "| one of the symbols, at random | 12.50 | 0.9041 |" in report  # 10 log 8 / 23
    assert "## Accuracy by steps of delay" in report
    assert not (run / "levels.png").exists()  # of one level
    assert "reach.png" not in report


def test_accuracy_is_that_of_what_was_to_be_remembered():
    """A model that always says 3 and 0 is right where these are to be said, and only there."""

    class Model:
        def predict(self, x, batch_size, verbose):
            logits = np.zeros((*x.shape, 10))
            logits[..., 3], logits[:, :-10, 0] = 1, 2
            return logits

    tests = memory.to_test(memory.CopyMemory(5), 200, 0)
    found = sequence_memory.evaluate(tests, Model())
    assert found["accuracy_5"] == (tests[5].labels[:, -10:] == 3).mean()
    blank = np.log(8 + np.e + np.e**2) - 2
    symbol = np.log(9 + np.e) - found["accuracy_5"]
    assert found["loss"] == pytest.approx((15 * blank + 10 * symbol) / 25)


def test_gradients_are_those_of_the_last_query(monkeypatch):
    """Against the whole Jacobian there, channel by channel."""
    count, width = 400, 8
    monkeypatch.setattr(remembering, "DRAWN", count)
    keras.utils.set_random_seed(0)
    task = memory.AssociativeRecall(12, 16, (1, 2))
    tests = memory.to_test(task, count, 0)
    model = sequence_memory.network(task, parse(*TINY), "lstm-attention", width)
    found = remembering.reach(task, tests, model)
    last = [int(np.flatnonzero(row)[-1]) for row in tests[2].labels]
    assert len(set(last)) > 3
    assert len(found) == min(last) + 1
    table = keras.ops.convert_to_numpy(model.get_layer("embedding").embeddings)
    x = keras.ops.convert_to_tensor(table[tests[2].tokens])
    read = keras.Model(model.get_layer("embedding").output, model.get_layer("norm").input)
    squares = np.zeros(len(found))
    for channel in range(width):
        direction = np.zeros(x.shape, "float32")
        direction[np.arange(count), last, channel] = 1
        (gradient,) = backend.vjp(read, [x], keras.ops.convert_to_tensor(direction))
        each = (keras.ops.convert_to_numpy(gradient) ** 2).sum(-1)
        for row, step in zip(each, last, strict=True):
            squares += row[step - np.arange(len(found))] / count
    np.testing.assert_allclose(found, np.sqrt(squares), rtol=0.05)


def test_windows_are_swept():
    settings = parse(*TINY)
    windowed = dict.fromkeys(("w",), ("lstm-attention", 1))
    assert windowed["w"] not in sequence_memory.windows(settings).values()
    seen = sequence_memory.windows(parse(*TINY, "--sweep-windows", "1"))
    assert seen["lstm-attention-w1"] == windowed["w"]


def test_models_have_as_many_parameters():
    settings = parse("--width", "64")
    task = memory.AssociativeRecall()
    sizes = {}
    for kind in sequence_memory.windows(settings):
        widths = {kind: sequence_memory.width_of(task, settings, kind)}
        sizes[kind] = sequence_memory.build(task, settings, widths, kind, 0).count_params()
    whole = sequence_memory.network(task, settings, "lstm-attention", 64).count_params()
    assert sizes == dict.fromkeys(sizes, pytest.approx(whole, rel=0.06))
    assert len(sizes) == 6


def test_models_of_one_seed_begin_alike():
    settings, task = parse(*TINY), memory.AssociativeRecall(12, 8, (1, 2))
    one, same, other = (
        sequence_memory.build(task, settings, {"lstm": 4}, "lstm", seed).get_weights()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[0], same[0])
    assert not np.array_equal(one[0], other[0])


def test_an_lstm_with_attention_learns_to_recall():
    """Two pairs, in seconds; the loss of the guess is far behind."""
    settings = parse("--pairs", "2", "--length", "8", "--vocabulary-size", "16", "--width", "32")
    task = memory.AssociativeRecall(16, 8, (2,))
    widths = {"lstm-attention": 32}
    model = sequence_memory.build(task, settings, widths, "lstm-attention", 0)
    model.optimizer.learning_rate = 1e-2
    data = memory.batches(task, 64, 150, 0)
    model.fit(data, shuffle=False, verbose=0)
    found = sequence_memory.evaluate(memory.to_test(task, 64, 1), model)
    assert found["accuracy_2"] > 0.8
    keras.backend.clear_session()


def test_sizes_follow_the_flags():
    assert parse() == sequence_memory.Settings()
    full = parse("--full", "--width", "96")
    assert (full.vocabulary_size, full.length, full.pairs) == (256, 64, (4, 8, 16))
    assert (full.width, full.full) == (96, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "9"], "`pairs` must be at most a quarter of `length`"),
        (["--pairs"], "`pairs` must name at least one number"),
        (["--vocabulary-size", "15"], "`vocabulary_size` must be even"),
        (["--task", "copy", "--delay", "0"], "`delay` must be an integer >= 1"),
        (["--epoch-steps", "0"], "`epoch_steps` must be an integer >= 1"),
        (["--batch-size", "1"], "`batch_size` must be at least the number of levels"),
        (["--sweep-windows", "0"], "`window` must be"),
        (["--width", "30", "--num-heads", "4"], "must be divisible by `num_heads`"),
        (["--models", "gru"], "`models` must name some of lstm, attention"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert sequence_memory.main([*TINY, "--length", "32", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
