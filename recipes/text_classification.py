"""Text in, label out: a Transformer encoder, an LSTM, and logistic regression on a bag of words.

Task    Tell the class of a text. Transformer and LSTM see the same subwords. --grid: the
        Transformer with each dropout, batch size and learning rate, on the validation texts.
        --pretrained FOLDER: a BERT that `kattn.presets.from_huggingface` loads, against the same
        network from scratch, with 10, 50 and 200 labelled texts of each class.
Data    scipy (default; no network): what the functions and classes of SciPy say of themselves,
        without signatures, names of modules and sections, by part of the library. The texts depend
        on the version of SciPy. tfds:imdb_reviews and others with text and label; folder:<path>,
        one folder a class, with folders such as train and test above these or not. --classes-from
        says which are classes where that is not clear.
Score   Test accuracy. Of the training texts 15 % validate.
Run     python -m recipes.text_classification
        python -m recipes.text_classification --grid --seeds 1
        python -m recipes.text_classification --dataset tfds:imdb_reviews
        python -m recipes.text_classification --pretrained all-MiniLM-L6-v2
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import harness
from recipes.data import labelled_texts
from recipes.data.bag_of_words import bag_of_words
from recipes.data.encoded_texts import EncodedTexts

RECIPE = "text_classification"
TITLES = {"lstm": "LSTM", "transformer": "Transformer"}
STARTS = {"scratch": "from scratch", "pretrained": "pretrained"}


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train a Transformer encoder and an LSTM to tell the classes of texts."""

    dataset: str = "scipy"  # scipy, tfds:<name> or folder:<path>
    data_dir: Path | None = None  # where TensorFlow Datasets keeps its files
    classes_from: int | None = None  # level of the folders that are classes, 1 at the top
    split_seed: int = 0  # draws the test texts, where the source has no split of its own

    grid: bool = False  # compare Transformers with each of the next three instead
    dropouts: tuple[float, ...] = (0.0, 0.2, 0.4)
    batch_sizes: tuple[int, ...] = (16, 64)
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)

    pretrained: Path | None = None  # folder of a BERT: compare it with itself from scratch instead
    labels: tuple[int, ...] = (10, 50, 200)  # ... with so many labelled texts of each class
    epoch_texts: int = 320  # ... texts in an epoch at least; few come several times
    pretrained_learning_rate: float = 1e-4  # ... highest rate of the pretrained network

    # What follows has other defaults for other data sets and --pretrained, see `presets`.
    length: int = 64  # subwords of a text that are read
    vocabulary_size: int = 2000  # subwords, at most
    num_layers: int = 2  # blocks of the Transformer
    num_heads: int = 4  # heads of each attention layer
    width: int = 64  # channels of Transformer and LSTM
    dropout: float = 0.2  # fraction of the channels that are dropped
    epochs: int = 15  # passes over the training texts
    batch_size: int = 16  # texts in one training step
    learning_rate: float = 1e-3  # highest rate, reached after one epoch of warm-up; AdamW
    clip: str = "global_norm:1"  # gradients: MODE or MODE:THRESHOLD

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(1, length=self.length)
        for name in ("dropouts", "batch_sizes", "learning_rates", "labels"):
            if not getattr(self, name):
                raise arguments.error(f"`{name}` must not be empty", **{name: ()})
        least = {"batch_sizes": min(self.batch_sizes), "labels": min(self.labels)}
        arguments.check_integers(1, epoch_texts=self.epoch_texts, **least)
        if self.grid and self.pretrained:
            raise arguments.error("`grid` and `pretrained` must not be given together", grid=True)
        for dropout in self.dropouts:
            arguments.check_fractions(dropouts=dropout)


def presets(given: Settings) -> Settings:
    """The defaults for the data set and the way of working that the flags name."""
    options: dict[str, Any] = {}
    if given.dataset != "scipy":
        options |= {"length": 256, "vocabulary_size": 8000, "width": 128}
        options |= {"epochs": 5, "batch_size": 32, "seeds": 1}
    if given.pretrained:
        options |= {"length": min(options.get("length", 64), 128), "dropout": 0.1, "epochs": 5}
        options |= {"batch_size": 16, "learning_rate": 3e-4}
    return Settings(dataset=given.dataset, pretrained=given.pretrained, **options)


def read(settings: Settings) -> EncodedTexts:
    """Read the texts, and encode them by the tokenizer of the folder or by one that they train."""
    from kattn.text import Subwords

    data = labelled_texts.load(
        settings.dataset,
        data_dir=settings.data_dir,
        seed=settings.split_seed,
        classes_from=settings.classes_from,
    )
    data = harness.announced(data)
    if settings.pretrained:
        subwords = Subwords.load(settings.pretrained)
    else:
        subwords = Subwords.train(data.texts, settings.vocabulary_size)
    return EncodedTexts.of(data, subwords, settings.length)


def build(task: EncodedTexts, variants: Mapping[str, Settings], kind: str, seed: int) -> Any:
    """A compiled classifier: an LSTM, a Transformer encoder, or the one of a folder."""
    import keras

    from kattn.layers import LearnedPositions
    from kattn.models import TransformerClassifier
    from recipes.harness.recurrent import lstm_classifier

    keras.utils.set_random_seed(seed)
    settings, sizes = variants[kind], (task.vocabulary_size, len(task.data.classes))
    length, width, dropout = settings.length, settings.width, settings.dropout
    if kind == "lstm":
        model = lstm_classifier(*sizes, length, width=width, dropout=dropout)
    elif settings.pretrained:
        from kattn.presets import from_huggingface

        # With a name of its own, the report is the same after --resume.
        options = {"num_classes": sizes[1], "pooling": "mean", "use_pooler": False}
        options |= {"dropout": dropout, "name": "network"}
        network = from_huggingface(settings.pretrained, print_fn=None, **options)
        if kind == "scratch":
            network = TransformerClassifier.from_config(network.get_config())
        tokens = keras.Input((length,), dtype="int32")
        model = keras.Model(tokens, network(tokens))
    else:
        options = {"position": LearnedPositions(length), "padding_token": 0, "dropout": dropout}
        blocks = settings.num_layers, settings.num_heads, width
        model = TransformerClassifier(*sizes, *blocks, **options)
        model.build((None, length))
    optimizer = harness.adamw(settings.learning_rate, settings.weight_decay)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def evaluate(x: np.ndarray, y: np.ndarray, model: Any) -> dict[str, float]:
    """Cross-entropy and accuracy on texts."""
    return harness.cross_entropy_and_accuracy(harness.predict(model, x, 64), y)


def grid(settings: Settings) -> dict[str, Settings]:
    """The settings with each dropout, batch size and learning rate, by what they are."""
    each = itertools.product(settings.dropouts, settings.batch_sizes, settings.learning_rates)
    return {
        f"dropout{dropout:g}-batch{size}-rate{rate:g}": dataclasses.replace(
            settings, dropout=dropout, batch_size=size, learning_rate=rate
        )
        for dropout, size, rate in each
    }


def comparison(
    task: EncodedTexts,
    settings: Settings,
    variants: Mapping[str, Settings],
    titles: Mapping[str, str],
    per_class: int | None = None,
) -> harness.Comparison:
    """Models with the settings of their kinds, trained on all texts or on some of each class."""
    from kattn.data import EpochShuffled

    data, (fit, held) = task.data, task.data.to_fit_and_to_validate(per_class)
    examples = fit if per_class is None else np.resize(fit, max(len(fit), settings.epoch_texts))
    scored = "validation" if settings.grid else "test"
    validate = functools.partial(evaluate, task.x[held], data.labels[held])
    test = functools.partial(evaluate, task.x_test, data.test_labels)

    def batches(kind: str, seed: int) -> Any:
        arrays, size = (task.x[examples], data.labels[examples]), variants[kind].batch_size
        return EpochShuffled(arrays, batch_size=size, seed=seed, drop_remainder=True)

    about = (
        f"{data.name}: {len(fit):,} texts to fit, {len(held):,} to validate and "
        f"{len(data.test_texts):,} to test, {len(data.classes)} classes"
    )
    found = harness.Comparison(
        title=f"Text classification: {data.name}",
        about=about,
        titles=titles,
        scores=(
            harness.Score("accuracy", f"{scored} accuracy", is_percentage=True, digits=2),
            harness.Score("loss", f"{scored} loss", digits=3),
        ),
        build=functools.partial(build, task, variants),
        batches=batches,
        validate=validate,
        test=validate if settings.grid else test,
        tested=len(held) if settings.grid else len(data.test_texts),
        references=lambda: {"bag of words": bag_of_words(data, fit, held, on=scored)},
        # Where it is not compared, the rate is that of the flag, or what --lr-find finds.
        rates={k: each.learning_rate for k, each in variants.items() if titles is not TITLES},
        notes=(
            f"{about}. Split: {data.split}.",
            f"The models read the first {settings.length} subwords of a text, of "
            f"{task.vocabulary_size:,} different ones. Bag of words: logistic regression on tf-idf "
            "of words and pairs of words, its regularisation chosen by the validation loss.",
        ),
        test_note="The test texts were not used."
        if settings.grid
        else "The test texts were used once per model and seed, after training.",
    )
    for kind in variants:  # so that sizes that do not fit are refused at once
        found.batches(kind, 0)
    found.build(list(variants)[-1], 0)
    return found


def prepare(settings: Settings) -> harness.Job:
    """Read the texts, and compare the models on them."""
    task, variants, titles = read(settings), dict.fromkeys(TITLES, settings), TITLES
    if settings.pretrained:
        rates = (settings.learning_rate, settings.pretrained_learning_rate)
        variants = {
            kind: dataclasses.replace(settings, learning_rate=rate)
            for kind, rate in zip(STARTS, rates, strict=True)
        }
        parts = {
            f"labels-{count}": comparison(task, settings, variants, STARTS, count)
            for count in settings.labels
        }
        title = f"Pretrained or from scratch: {task.data.name}"
        return harness.compare_each(title, parts, settings)
    if settings.grid:
        variants = grid(settings)
        titles = {kind: kind.replace("-", ", ") for kind in variants}
    return harness.compare(comparison(task, settings, variants, titles), settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments, presets), prepare)


if __name__ == "__main__":
    sys.exit(main())
