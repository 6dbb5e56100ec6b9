"""Learn to write, character by character: a Transformer, LSTMs, and a table of counts.

Task    Predict the next character of a text. Transformer, LSTM, and LSTM whose outputs attend to
        each other (SA-RNN) have as many parameters, and are trained for as many steps, or with
        --minutes for as long. Of a 5-gram only counts are kept.
Data    The documentation of Python, as its standard library has it (default; `pydoc_data.topics`,
        the text depends on the version of Python; no network), tfds:tiny_shakespeare, or
        file:<path>. The last tenth of the characters validates.
Score   Nats per character of that tenth, all of it: windows half their length apart, of which the
        second half counts, so that each character is predicted once, from half a window or more.
Run     python -m recipes.text_generation
        python -m recipes.text_generation --dataset file:input.txt --minutes 15
        python -m recipes.text_generation --sweep-layers 2 6 --sweep-heads 2 8 --sweep-widths 64 192

The default is the size that nanoGPT trains on a CPU (https://github.com/karpathy/nanoGPT), with
rotary positions instead of learned ones: those allow to write on beyond a window.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import harness
from recipes.data import text as texts
from recipes.data.n_gram import NGram

RECIPE = "text_generation"
LSTM, SA_RNN, TRANSFORMER = "lstm", "sa-rnn", "transformer"
RNNS = {LSTM: "LSTM", SA_RNN: "SA-RNN"}
SCORES = (harness.Score("loss", "validation loss", digits=3),)  # nats per character
SAMPLED = 400  # characters of each sample in the report
VALIDATED = 2560  # characters at the start of the part held out that validate an epoch


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train a Transformer and LSTMs on the characters of a text, and let them write."""

    dataset: str = "pydoc"  # pydoc, tfds:<name> or file:<path>
    data_dir: Path | None = None  # where TensorFlow Datasets keeps its files

    num_layers: int = 4  # blocks of the Transformer
    num_heads: int = 4  # heads of each attention layer
    width: int = 128  # channels of the Transformer
    length: int = 64  # characters in a window
    dropout: float = 0.0  # fraction dropped behind each part of a block, and of attention weights
    batch_size: int = 12  # windows in one training step
    epochs: int = 8  # each of epoch_steps steps, then the models are validated
    epoch_steps: int = 250  # training steps in an epoch
    learning_rate: float = 3e-3  # highest rate of the Transformer; AdamW
    lstm_learning_rate: float = 3e-3  # highest rate of LSTM and SA-RNN
    weight_decay: float = 0.1  # of AdamW; biases and gains do not decay
    clip: str = "global_norm:1"  # gradients: MODE or MODE:THRESHOLD

    lstm_layers: int = 2  # of LSTM and SA-RNN, whose widths follow from the number of parameters
    order: int = 5  # characters of an n-gram
    sweep_layers: tuple[int, ...] = ()  # further Transformers, with other numbers of blocks
    sweep_heads: tuple[int, ...] = ()  # ... with other numbers of heads
    sweep_widths: tuple[int, ...] = ()  # ... with other widths
    temperature: float = 0.8  # of the samples in the report

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(2, length=self.length)
        names = ("epoch_steps", "lstm_layers", "order")
        arguments.check_integers(1, **{name: getattr(self, name) for name in names})

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Blocks, heads and width of each Transformer, by the name of its kind."""
        layers, heads, width = base = self.num_layers, self.num_heads, self.width
        others = [
            *((other, heads, width) for other in self.sweep_layers),
            *((layers, other, width) for other in self.sweep_heads),
            *((layers, heads, other) for other in self.sweep_widths),
        ]
        return {TRANSFORMER: base} | {
            "{}-{}x{}x{}".format(TRANSFORMER, *shape): shape for shape in others if shape != base
        }


def build(text: texts.Text, settings: Settings, kind: str, seed: int) -> Any:
    """A compiled model: a Transformer as in nanoGPT, or an RNN with as many parameters."""
    import keras

    from kattn.layers import RotaryEmbedding
    from kattn.models import TransformerLM
    from recipes.harness.recurrent import rnn_of_size

    keras.utils.set_random_seed(seed)
    length, vocabulary = settings.length, len(text.characters)
    model = TransformerLM(
        vocabulary,
        *settings.shapes[TRANSFORMER if kind in RNNS else kind],
        position=RotaryEmbedding(),
        norm=keras.layers.LayerNormalization(epsilon=1e-5, center=False),
        use_bias=False,
        dropout=settings.dropout,
        attention_dropout=settings.dropout,
    )
    model.build((None, length))
    if kind in RNNS:
        heads = settings.num_heads if kind == SA_RNN else None
        sizes = model.count_params(), vocabulary, length
        layers, dropout = settings.lstm_layers, settings.dropout
        model = rnn_of_size(*sizes, num_layers=layers, num_heads=heads, dropout=dropout)
    optimizer = harness.adamw(settings.learning_rate, settings.weight_decay, beta_2=0.99)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def evaluate(text: texts.Text, length: int, count: int | None, model: Any) -> dict[str, float]:
    """Nats per character of the part held out, or of its first `count` windows."""
    inputs, targets, is_real = (part[:count] for part in text.strided(length))
    return {"loss": harness.next_token_loss(model, inputs, targets, is_real)}


def samples(
    text: texts.Text, settings: Settings, counts: NGram, models: Mapping[str, Any], folder: Any
) -> dict[str, str]:
    """What each model writes behind the first characters of the part held out."""
    from kattn import generation
    from kattn.text import Characters

    prompt, alphabet = text.held_out[: settings.length], Characters(text.characters)
    sampler = generation.RandomSampler([generation.Temperature(settings.temperature)])
    window = generation.WindowCache(settings.length)
    written = {f"{counts.order}-gram, temperature 1": counts.sample(prompt, SAMPLED, seed=0)}
    for kind, model in models.items():
        (written[title_of(settings, kind)],) = generation.generate(
            model, prompt[None], SAMPLED, sampler=sampler, cache_policy=window, seed=0
        )
    shown = [
        f"### {title}\n\n{harness.block(alphabet.decode(tokens))}"
        for title, tokens in written.items()
    ]
    about = (
        f"Models of seed 0, temperature {settings.temperature:g}, each character by the last "
        f"{settings.length}.\n\nThe beginning:\n\n{harness.block(alphabet.decode(prompt))}"
    )
    return {"What they write": "\n\n".join([about, *shown])}


def title_of(settings: Settings, kind: str) -> str:
    """The title of a kind of model."""
    return RNNS.get(kind) or "Transformer {}x{}x{}".format(*settings.shapes[kind])


def prepare(settings: Settings) -> harness.Job:
    """Read the text, and compare the models on it."""
    length, size = settings.length, settings.batch_size
    text = texts.load(settings.dataset, settings.data_dir, length=length, batch=size)
    text = dataclasses.replace(text, name=harness.in_markdown(text.name))
    counts = NGram(text.train, settings.order, len(text.characters))
    before = text.train[len(text.train) - counts.order + 1 :]
    chances = counts.probabilities(np.concatenate([before, text.held_out]))
    known = {f"{counts.order}-gram": {"loss": float(-np.log(chances).mean())}}
    about = (
        f"{text.name}: {len(text.train):,} characters to learn from, {len(text.held_out):,} held "
        f"out, {len(text.characters)} different"
    )
    notes = (
        f"{about}. The loss is in nats per character.",
        f"Each character held out is predicted once, from {length - length // 2 + 1} to {length} "
        "before it: windows lie half their length apart, and the second half of each counts. "
        f"After an epoch the first {VALIDATED:,} of them are.",
        f"Transformers are named by blocks, heads and width. An epoch has {settings.epoch_steps} "
        "steps, whose windows begin at random places.",
    )
    comparison = harness.Comparison(
        title=f"Writing by characters: {text.name}",
        about=about,
        titles={kind: title_of(settings, kind) for kind in (*RNNS, *settings.shapes)},
        scores=SCORES,
        build=functools.partial(build, text, settings),
        batches=lambda kind, seed: text.batches(length, size, settings.epoch_steps, seed),
        validate=functools.partial(evaluate, text, length, VALIDATED // (length // 2)),
        test=functools.partial(evaluate, text, length, None),
        tested=len(text.held_out),
        references=lambda: known,
        rates=dict.fromkeys(RNNS, settings.lstm_learning_rate),
        notes=notes,
        test_note="All of the part held out is predicted after training.",
        sections=functools.partial(samples, text, settings, counts),
    )
    for kind in comparison.titles:  # so that sizes no layer takes are refused at once
        comparison.build(kind, 0)
    return harness.compare(comparison, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments), prepare)


if __name__ == "__main__":
    sys.exit(main())
