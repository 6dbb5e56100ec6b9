"""Translate: recurrent networks without attention and with it, and a Transformer.

Task    Say a text in another language. An encoder and a decoder of LSTMs, whose decoder sees the
        last state of the encoder only, or attends to all of its outputs: by the score that
        --attention names, or by scaled products of projections, with each number of heads in
        --sweep-heads; and a Transformer. --minutes trains each for as long.
Data    Dates as they are written in 36 languages and countries, to YYYY-MM-DD (default; by Babel,
        no network). folder:<path> with files such as train.de.gz and train.en.gz, as those of
        Multi30k (https://github.com/multi30k/dataset), files:<source>:<target>, or tfds:<name>.
Score   sacreBLEU of the test texts, translated greedily and by beam search; of dates also the share
        that is right.
Run     python -m recipes.translation
        python -m recipes.translation --dataset folder:multi30k --minutes 15
        python -m recipes.translation --dataset folder:multi30k --sweep-heads 1 2 4 8
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sacrebleu

from recipes import harness
from recipes.data import parallel_texts
from recipes.data.encoded_pairs import PAD, EncodedPairs, text_scores
from recipes.harness import translations, translators
from recipes.harness.translators import RNN, TRANSFORMER

RECIPE = "translation"
VALIDATED = 512  # pairs that validate an epoch


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train recurrent networks and a Transformer to translate."""

    dataset: str = "dates"  # dates, folder:<path>, files:<source>:<target> or tfds:<name>
    source_language: str = "de"  # language to translate from, as a folder or a set names it
    target_language: str = "en"  # language to translate into
    data_dir: Path | None = None  # where TensorFlow Datasets keeps its files
    split_seed: int = 0  # seed that draws the dates, and the parts that another source lacks
    attention: Literal[  # score of the attention in the model rnn-attention
        "additive", "general", "dot", "location"
    ] = "general"
    attend: Literal[  # whether rnn-attention attends before or after its state changes
        "before", "after"
    ] = "after"
    sweep_heads: tuple[int, ...] = (1, 4)  # trains a model rnn-h<N> for each number N of heads
    heads_attend: Literal[  # whether the models rnn-h<N> attend before or after their state changes
        "before", "after"
    ] = "before"
    num_beams: int = 5  # candidates of the beam search
    rnn_learning_rate: float = 3e-3  # highest rate of the RNNs
    learning_rate: float = 3e-3  # highest rate of the Transformer, reached after one epoch; AdamW
    clip: str = "global_norm:1"  # gradients: MODE or MODE:THRESHOLD
    seeds: int = 1  # number of runs of each model, each with another seed

    # What follows has other defaults for other data sets, see `presets`.
    lower: bool = False  # take the texts in lower case
    vocabulary_size: int = 600  # subwords of both languages, at most
    length: int = 32  # subwords of a text at most, its end included
    num_layers: int = 1  # blocks of the Transformer's encoder, and of its decoder
    num_heads: int = 4  # heads of each attention layer of the Transformer
    width: int = 96  # channels of the Transformer
    rnn_layers: int = 1  # LSTMs of the encoder, and of the decoder
    rnn_width: int = 96  # channels of the RNNs
    dropout: float = 0.0  # fraction of the channels that are dropped
    label_smoothing: float = 0.0  # part of a label that all subwords share
    batch_size: int = 16  # pairs in one training step
    epochs: int = 8  # passes over the pairs to train

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(1, rnn_layers=self.rnn_layers, num_beams=self.num_beams)
        arguments.check_integers(2, length=self.length)
        arguments.check_fractions(label_smoothing=self.label_smoothing, dropout=self.dropout)
        for heads in self.sweep_heads:
            arguments.check_integers(1, sweep_heads=heads)

    @property
    def kinds(self) -> dict[str, translators.Kind]:
        """The kinds of models by name."""
        heads = self.sweep_heads, self.heads_attend
        return translators.kinds(self.attention, self.attend, *heads)


def presets(given: Settings) -> Settings:
    """The defaults for the data set that the flags name."""
    if given.dataset == "dates":
        return Settings()
    options: dict[str, Any] = {"lower": True, "vocabulary_size": 4000, "length": 48, "epochs": 8}
    options |= {"num_layers": 2, "width": 128, "rnn_width": 256, "dropout": 0.1}
    options |= {"label_smoothing": 0.1, "batch_size": 64}
    return Settings(dataset=given.dataset, **options)


def build(task: EncodedPairs, settings: Settings, kind: str, seed: int) -> Any:
    """A compiled model from pairs of tokens to logits, which decodes."""
    import keras

    from recipes.harness.losses import TokenCrossentropy

    keras.utils.set_random_seed(seed)
    options: dict[str, Any] = {"padding_token": PAD, "dropout": settings.dropout}
    layers, heads, width = settings.num_layers, settings.num_heads, settings.width
    if kind == TRANSFORMER:
        model = translators.transformer(task.vocabulary_size, layers, heads, width, **options)
    else:
        sizes = task.vocabulary_size, settings.rnn_layers, settings.rnn_width
        model = translators.recurrent(settings.kinds[kind], *sizes, **options)
    model.build(((None, settings.length), (None, settings.length)))
    optimizer = harness.adamw(settings.learning_rate, settings.weight_decay, beta_2=0.98)
    model.compile(optimizer, TokenCrossentropy(settings.label_smoothing))
    return model


def validate(task: EncodedPairs, batch_size: int, model: Any) -> dict[str, float]:
    """The loss of pairs to validate, each token by those before it: a mean over all tokens."""
    x, y, weights = task.to_validate(VALIDATED)
    return {"loss": harness.loss_by_weight(model, x, y, weights, batch_size)}


def test(task: EncodedPairs, settings: Settings, model: Any) -> dict[str, float]:
    """Scores of the translations of the sources to test."""
    from kattn.generation import BeamSearch

    source = task.test[0]
    greedy = task.scores(task.translate(model, source), lower=settings.lower)
    beam = BeamSearch(settings.num_beams)
    found = task.scores(task.translate(model, source, beam), lower=settings.lower)
    return {**greedy, **{f"beam_{name}": value for name, value in found.items()}}


def prepare(settings: Settings) -> harness.Job:
    """Read and encode the texts, and compare the models on them."""
    languages = settings.source_language, settings.target_language
    texts = parallel_texts.load(
        settings.dataset,
        languages,
        data_dir=settings.data_dir,
        seed=settings.split_seed,
        lower=settings.lower,
    )
    task = EncodedPairs.of(texts, settings.vocabulary_size, settings.length)
    about, size, kinds = harness.in_markdown(texts.about), settings.batch_size, settings.kinds
    titles = {name: kind.title for name, kind in kinds.items()}
    recurrent = [name for name in kinds if name != TRANSFORMER]
    accuracy = harness.Score("accuracy", "test accuracy", is_percentage=True, digits=2)
    bleu = harness.Score("bleu", "test BLEU", digits=2)
    beam = harness.Score("beam_bleu", f"test BLEU, {settings.num_beams} beams", digits=2)
    given = text_scores(texts.test.sources, texts.test.targets, lower=settings.lower)
    comparison = harness.Comparison(
        title=f"Translation: {harness.in_markdown(texts.name)}",
        about=about,
        titles=titles,
        scores=(accuracy, bleu, beam) if settings.dataset == "dates" else (bleu, beam),
        build=functools.partial(build, task, settings),
        batches=lambda kind, seed: task.batches(size, seed),
        validate=functools.partial(validate, task, size),
        test=functools.partial(test, task, settings),
        tested=len(texts.test.sources),
        references=lambda: {"the source as it is": given},
        rates=dict.fromkeys(recurrent, settings.rnn_learning_rate),
        notes=(
            f"{about}. Split: {texts.split}. {task.left_out:,} pairs of more than "
            f"{settings.length} subwords were not trained on. {task.vocabulary_size:,} subwords of "
            "both languages, learnt from the pairs to train.",
            f"BLEU: sacreBLEU {sacrebleu.__version__}, tokenizer 13a, one reference, "
            f"{'lower' if settings.lower else 'mixed'} case; greedy unless it says beams.",
            "Losses are in nats per subword, with labels smoothed by "
            f"{settings.label_smoothing:g}. That to validate is the mean over all subwords of the "
            f"first {VALIDATED} pairs, or of all; that of training is the mean over batches.",
            f"The RNN with {settings.attention} attention attends {settings.attend} its state "
            f"changes, those with heads {settings.heads_attend} that, by scaled products of "
            "projections.",
        ),
        sections=functools.partial(translations.sections, task, titles),
    )
    for kind in settings.models or titles:  # so that sizes no layer takes are refused at once
        if kind in titles:
            comparison.build(kind, 0)
    comparison.batches(RNN, 0)
    return harness.compare(comparison, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments, presets), prepare)


if __name__ == "__main__":
    sys.exit(main())
