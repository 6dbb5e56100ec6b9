"""The recipe from the command line, on a handful of texts: result, resume, plugs and bad input."""

import json

import keras
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

from kattn import models
from recipes import harness, translation
from recipes.data import parallel_texts
from recipes.data.encoded_pairs import EncodedPairs

TINY = [
    *("--seeds", "1"),
    *("--epochs", "1"),
    *("--batch-size", "4"),
    *("--vocabulary-size", "280"),
    *("--length", "8"),
    *("--num-layers", "1"),
    *("--num-heads", "2"),
    *("--width", "8"),
    *("--rnn-width", "8"),
    *("--num-beams", "2"),
]
NUMBERS = (("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier"), ("five", "fünf"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Thirty pairs of numbers, in capitals here and there."""
    root = tmp_path_factory.mktemp("texts") / "$t$"
    root.mkdir()
    pairs = [
        (f"{a} {c}".capitalize(), f"{b} {d}".capitalize()) for a, b in NUMBERS for c, d in NUMBERS
    ]
    for part, chosen in {"train": pairs[:18], "val": pairs[18:21], "test": pairs[21:]}.items():
        for side, language in enumerate(("en", "de")):
            lines = "".join(f"{pair[side]}\n" for pair in chosen)
            (root / f"{part}.{language}").write_text(lines, encoding="utf-8")
    return f"folder:{root}"


@pytest.fixture
def asked(monkeypatch):
    """How the recurrent models are asked for."""
    found, known = [], models.AttentionSeq2Seq

    def new(*sizes, **options):
        names = ("attention", "num_heads", "attend", "dropout")
        found.append((*sizes, *(options.get(name) for name in names)))
        assert options["padding_token"] == 0
        return known(*sizes, **options)

    monkeypatch.setattr(models, "AttentionSeq2Seq", new)
    return found


def titles(settings):
    return {name: kind.title for name, kind in settings.kinds.items()}


def parse(*arguments):
    settings = translation.Settings
    return harness.parse("x", settings, arguments, translation.presets)


def task_of(dataset, settings):
    texts = parallel_texts.load(dataset, lower=settings.lower)
    return EncodedPairs.of(texts, settings.vocabulary_size, settings.length)


@pytest.mark.usefixtures("steps_are_not_timed")
def test_a_run_leaves_a_folder_with_everything(dataset, tmp_path, write_again):
    run = tmp_path / "run"
    command = [*TINY, "--dataset", dataset, "--models", "transformer", "--output", str(run)]
    assert translation.main(command) == 0
    report = (run / "report.md").read_text()
    words = " ".join(report.split())
    assert report.startswith("# Translation: `$t$, de to en`\n")
    assert "`$t$, de to en: 18 pairs to train, 3 to validate and 4 to test`" in words
    assert "Split: the source's own parts. 0 pairs of more than 8 subwords" in words
    assert "tokenizer 13a, one reference, lower case; greedy unless it says beams" in words
    test = json.loads((run / "history/transformer-seed0.json").read_text())["test"]
    assert f"| Transformer | {test['bleu']:.2f} | {test['beam_bleu']:.2f} |" in report
    assert "| the source as it is | 0.00 |  |" in report
    assert "Highest learning rates: Transformer 0.003." in words
    assert "source: fünf zwei\nreference: five two\nTransformer:" in report
    assert "(alignments-transformer.png)" in report
    assert (run / "alignments-transformer.png").is_file()
    model = keras.saving.load_model(run / "checkpoints/transformer-seed0.keras")
    settings = parse(*command)
    task = task_of(dataset, settings)
    assert translation.test(task, settings, model) == test
    write_again(translation.main, command, run)


def test_dates_are_right_or_not(dataset, tmp_path, monkeypatch):
    """The score of dates is which share of them is right; that of others is BLEU."""
    pytest.importorskip("babel")
    scored = {}
    monkeypatch.setattr(
        harness, "compare", lambda comparison, settings: scored.update(c=comparison)
    )
    translation.prepare(parse("--models", "transformer"))
    assert [score.key for score in scored["c"].scores] == ["accuracy", "bleu", "beam_bleu"]
    (known,) = scored["c"].references().values()
    assert 0 < known["accuracy"] < 0.1  # some are written as they are wanted
    translation.prepare(parse(*TINY, "--dataset", dataset, "--models", "transformer"))
    assert [score.key for score in scored["c"].scores] == ["bleu", "beam_bleu"]


def test_recurrent_models_by_their_heads(dataset, asked):
    flags = ["--sweep-heads", "1", "2", "8", "--rnn-layers", "3", "--dropout", "0.5"]
    settings = parse(*TINY, *flags)
    task = task_of(dataset, settings)
    assert titles(settings) == {
        "rnn": "RNN",
        "rnn-attention": "RNN + general attention",
        "rnn-h1": "RNN + 1 head",
        "rnn-h2": "RNN + 2 heads",
        "rnn-h8": "RNN + 8 heads",
        "transformer": "Transformer",
    }
    for kind in list(settings.kinds)[:-1]:
        model = translation.build(task, settings, kind, 0)
        assert model.built
        assert model.compiled
    sizes = task.vocabulary_size, 3, 8
    assert asked == [
        (*sizes, None, None, None, 0.5),
        (*sizes, "general", None, "after", 0.5),
        *((*sizes, "multi_head", heads, "before", 0.5) for heads in (1, 2, 8)),
    ]
    turned = ("--attention", "dot", "--attend", "before", "--heads-attend", "after")
    dot = parse(*TINY, *turned)
    assert titles(dot)["rnn-attention"] == "RNN + dot attention"
    for kind in ("rnn-attention", "rnn-h4"):
        translation.build(task, dot, kind, 0)
    assert [each[3:6] for each in asked[-2:]] == [
        ("dot", None, "before"),
        ("multi_head", 4, "after"),
    ]


@pytest.mark.usefixtures("steps_are_not_timed")
def test_recurrent_models_beside_each_other(dataset, asked, tmp_path, monkeypatch):
    """Each kind has its learning rate, and a figure of its attention if it has one."""
    said = lambda task, model, source, sampler=None: task.test[1][: len(source), 1:]  # noqa: E731
    monkeypatch.setattr(EncodedPairs, "translate", said)
    run = tmp_path / "run"
    flags = ["--sweep-heads", "2", "--rnn-learning-rate", "0.25", "--schedule", "constant"]
    command = [*TINY, *flags, "--dataset", dataset, "--models", "rnn", "rnn-h2"]
    command += ["--output", str(run)]
    assert translation.main(command) == 0
    report = (run / "report.md").read_text()
    results = {
        kind: json.loads((run / f"history/{kind}-seed0.json").read_text())
        for kind in ("rnn", "rnn-h2")
    }
    rates = {kind: each["epochs"][-1]["learning_rate"] for kind, each in results.items()}
    assert rates == pytest.approx({"rnn": 0.25, "rnn-h2": 0.25})
    assert [path.name for path in run.glob("alignments*")] == ["alignments-rnn-h2.png"]
    assert {each["test"]["accuracy"] for each in results.values()} == {1.0}
    words = " ".join(report.split())
    assert "RNN + 2 heads against RNN: the test BLEU is" in words
    assert "attention attends after its state changes, those with heads before that, by" in words
    assert asked


def test_scores_are_those_of_the_sources_to_test(dataset, monkeypatch):
    """Greedily and by a search, of which each has its own."""
    settings = parse(*TINY)
    task = task_of(dataset, settings)

    def translate(task, model, source, sampler=None):
        np.testing.assert_array_equal(source, task.test[0])
        if sampler is None:
            return task.test[1][:, 1:]
        assert sampler.num_beams == 2
        return task.test[1][::-1, 1:]

    monkeypatch.setattr(EncodedPairs, "translate", translate)
    found = translation.test(task, settings, None)
    assert set(found) == {"bleu", "accuracy", "beam_bleu", "beam_accuracy"}
    assert (found["accuracy"], found["beam_accuracy"]) == (1, 0)


def test_the_loss_of_what_validates(dataset):
    """Cross-entropy of each token by those before it, without padding, in batches of 2 pairs."""
    settings = parse(*TINY, "--label-smoothing", "0")
    task = task_of(dataset, settings)
    model = translation.build(task, settings, "transformer", 0)
    source, target = task.validate
    counts = np.count_nonzero(target, axis=1)
    assert len(counts) == 3
    assert counts[:2].mean() != counts[2]
    model.set_weights([3 * each for each in model.get_weights()])  # else all losses are about one
    found = translation.validate(task, 2, model)["loss"]
    logits = keras.ops.convert_to_numpy(model((source, target[:, :-1]))).astype("float64")
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = target[:, 1:]
    each = -np.log(np.take_along_axis(chances, wanted[..., None], axis=-1)[..., 0])
    assert found == pytest.approx(each[wanted != 0].mean(), rel=1e-4)


def test_a_transformer_learns_to_translate(dataset):
    """All pairs of the training by heart, in seconds: batches, loss, decoding fit together."""
    settings = parse(*TINY, "--width", "32", "--lower")
    task = task_of(dataset, settings)
    model = translation.build(task, settings, "transformer", 0)
    model.fit(task.batches(4, 0), epochs=80, shuffle=False, verbose=0)
    source, target = task.train
    found = task.translate(model, source, batch_size=len(source))
    right = [task.text(a) == task.text(b) for a, b in zip(found, target, strict=True)]
    assert np.mean(right) > 0.6  # by chance one in 25


def test_defaults_follow_the_data_set():
    assert parse() == translation.Settings()
    other = parse("--dataset", "folder:x", "--epochs", "3", "--sweep-heads", "1", "2", "4", "8")
    assert (other.lower, other.length, other.epochs) == (True, 48, 3)
    assert list(other.kinds)[1:-1] == ["rnn-attention", "rnn-h1", "rnn-h2", "rnn-h4", "rnn-h8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "folder:/no/such/folder"], "`dataset` must name a folder that exists"),
        (["--dataset", "multi30k"], "`dataset` must be dates, files:<source>:<target>"),
        (["--target-language", "fr"], "`dataset` must have each part in both languages"),
        (["--target-language", "de"], "`source_language` and `target_language` must be two"),
        (["--length", "1"], "`length` must be an integer >= 2; received: length=1"),
        (["--length", "2"], "`length` must leave at least one pair to train"),
        (["--sweep-heads", "0"], "`sweep_heads` must be an integer >= 1"),
        (["--num-beams", "0"], "`num_beams` must be an integer >= 1"),
        (["--label-smoothing", "1"], "`label_smoothing` must be a fraction in [0, 1)"),
        (["--vocabulary-size", "100"], "`vocabulary_size` must be an integer >= 259"),
        (["--width", "9"], "`width` must be divisible by `num_heads`"),
        (["--batch-size", "500"], "must fill at least one batch"),
        (
            ["--models", "gru"],
            "`models` must name some of rnn, rnn-attention, rnn-h1, rnn-h4, transformer",
        ),
    ],
)
def test_bad_input_is_one_line(dataset, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    command = [*TINY, "--dataset", dataset, "--models", "transformer", *arguments]
    assert translation.main(command) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
