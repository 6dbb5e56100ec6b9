"""The recipe from the command line, on a tiny text: result, resume, budgets and bad input."""

import json
import os
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt

from kattn.text import Characters
from recipes import harness, text_generation
from recipes.data import text as texts
from recipes.data.n_gram import NGram

TINY = [
    *("--seeds", "1"),
    *("--epochs", "2"),
    *("--epoch-steps", "4"),
    *("--batch-size", "4"),
    *("--length", "8"),
    *("--num-layers", "1"),
    *("--num-heads", "2"),
    *("--width", "8"),
    *("--lstm-layers", "1"),
    *("--order", "3"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / os.fsdecode(b"$ab$ \xff.txt")
    path.write_text("the cat sat on the mat.\n" * 60, encoding="utf-8")
    return f"file:{path}"


def parse(*arguments):
    return harness.parse("x", text_generation.Settings, arguments)


@pytest.mark.usefixtures("steps_are_not_timed")
def test_a_run_leaves_a_folder_with_everything(dataset, tmp_path, capsys, monkeypatch, write_again):
    monkeypatch.setattr(text_generation, "SAMPLED", 12)
    run = tmp_path / "run"
    command = [*TINY, "--dataset", dataset, "--output", str(run)]
    assert text_generation.main(command) == 0
    kinds = ["lstm", "sa-rnn", "transformer"]
    assert {path.name for path in (run / "history").iterdir()} == {
        f"{kind}-seed0.json" for kind in kinds
    }
    report = (run / "report.md").read_text()
    assert report.startswith("# Writing by characters: `$ab$ \\xff.txt`\n")
    words = " ".join(report.split())
    assert "1,296 characters to learn from, 144 held out, 12 different" in words
    assert "predicted once, from 5 to 8 before it" in words
    losses = {}
    for kind in kinds:
        result = json.loads((run / f"history/{kind}-seed0.json").read_text())
        losses[kind] = result["test"]["loss"]
        assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2]
    assert f"| Transformer 1x2x8 | {losses['transformer']:.3f} |" in report
    assert "| 250.0 |" in report
    text = texts.load(dataset, None, length=8, batch=4)
    counted = float(re.search(r"\| 3-gram \| ([\d.]+) \|", report).group(1))
    assert counted < 0.5  # two characters tell much of the next in this text
    assert "Validation loss, for comparison: 3-gram" in words

    samples = re.findall(r"### ([^\n]*)\n\n```text\n(.*?)\n```", report, re.DOTALL)
    titles = ["3-gram, temperature 1", "LSTM", "SA-RNN", "Transformer 1x2x8"]
    assert [title for title, _ in samples] == titles
    assert [len(sample) for _, sample in samples] == [12] * 4
    assert all(set(sample) <= set(text.characters) for _, sample in samples)
    assert f"Report: {run / 'report.md'}" in capsys.readouterr().out
    assert text_generation.main([*command, "--resume"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    write_again(text_generation.main, command, run)


def test_samples_are_shown_as_they_are(tmp_path):
    """Where the text has marks of Markdown, its samples have them, too."""
    path = tmp_path / "text.md"
    path.write_text("```\n# *a*\n```\x1b\n" * 90, encoding="utf-8")
    text = texts.load(f"file:{path}", None, length=24, batch=4)
    settings, counts = parse("--length", "24"), NGram(text.train, 5, len(text.characters))
    (section,) = text_generation.samples(text, settings, counts, {}, None).values()
    blocks = [token.content for token in MarkdownIt().parse(section) if token.type == "fence"]
    shown = Characters(text.characters).decode(text.held_out[:24]).replace("\x1b", "\\x1b")
    assert blocks[0] == f"{shown}\n"
    assert len(blocks) == 2
    assert "\n```\\x1b\n```" in blocks[1]
    assert len(blocks[1].replace("\\x1b", "\x1b")) == text_generation.SAMPLED + 1


def test_models_have_as_many_parameters(dataset):
    sizes = ("--length", "8", "--num-layers", "2", "--width", "16", "--sweep-widths", "24")
    settings = parse("--dataset", dataset, *sizes)
    text = texts.load(dataset, None, length=8, batch=4)
    *rnns, transformer = (
        text_generation.build(text, settings, kind, 0) for kind in ("lstm", "sa-rnn", "transformer")
    )
    for rnn in rnns:
        assert rnn.count_params() == pytest.approx(transformer.count_params(), rel=0.1)
    swept = text_generation.build(text, settings, "transformer-2x4x24", 0)
    assert (swept.options.num_layers, swept.options.num_heads, swept.options.width) == (2, 4, 24)


def test_evaluation_is_the_mean_over_the_part_held_out(dataset):
    """A model that knows how likely each character is has their cross-entropy."""
    text = texts.load(dataset, None, length=8, batch=4)
    counts = np.bincount(text.train, minlength=len(text.characters)) + 1.0

    class Model:
        def predict(self, x, batch_size, verbose):
            return np.broadcast_to(np.log(counts), (*x.shape, len(counts)))

    found = text_generation.evaluate(text, 8, None, Model())["loss"]
    chances = counts / counts.sum()
    assert found == pytest.approx(-np.log(chances[text.held_out]).mean(), rel=1e-9)


def test_sizes_and_sweeps():
    assert parse() == text_generation.Settings()
    small = parse()
    assert small.shapes == {"transformer": (4, 4, 128)}
    assert (small.length, small.batch_size, small.epochs * small.epoch_steps) == (64, 12, 2000)
    swept = parse("--sweep-layers", "2", "4", "--sweep-heads", "8", "--sweep-widths", "64")
    assert list(swept.shapes.values()) == [(4, 4, 128), (2, 4, 128), (4, 8, 128), (4, 4, 64)]
    assert text_generation.title_of(swept, "transformer-4x8x128") == "Transformer 4x8x128"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "file:/no/such.txt"], "`dataset` must name a file that exists"),
        (["--length", "1"], "`length` must be an integer >= 2; received: length=1"),
        (["--epoch-steps", "0"], "`epoch_steps` must be an integer >= 1"),
        (["--width", "30"], "`width` must be divisible by `num_heads`"),
        (["--sweep-widths", "30"], "`width` must be divisible by `num_heads`"),
        (["--clip", "median:1"], "`clip` must be one of value"),
        (["--order", "40"], "`order` must be small enough"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert text_generation.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
