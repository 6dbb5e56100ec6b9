"""Does self-attention help a small CNN? The same network without and with it, on real images.

Task    Classify images. Both models get the same seeds, first weights, data order and epochs.
Data    digits (default; in scikit-learn, no network): 1,200 + 597 grey images of 8 x 8 pixels.
        tfds:<name>; folder:<path> or zip:<path>, one folder a class, with folders such as train and
        test above these or not. --classes-from says which are classes where that is not clear.
        Transparency is laid over white; 16 bits a pixel become 8.
Result  Test accuracy in percent, CNN and CNN + self-attention, mean and standard deviation.
        digits, 3 seeds: 98.44 (0.19) and 97.60 (0.10) on TensorFlow, 97.93 (0.59) and 97.77 (0.26)
        on JAX, 98.27 (0.10) and 97.99 (0.44) on PyTorch. tfds:mnist, 2 seeds, TensorFlow, with
        batches in another order: 99.23 (0.04) and 99.25 (0.01). One difference is beyond chance, on
        TensorFlow, and against attention: these sets do not need it.
Cost    Whole command on two cores of an AMD EPYC: digits 43 (JAX) to 73 s (PyTorch); tfds:mnist 7
        minutes on a Xeon, with other work beside. Parameters + 2 %, FLOPs + 8 %, step + 24 to 37 %
        (digits). From the start to the first step 6.8 (TensorFlow), 13.0 (JAX) or 5.9 s (PyTorch)
        of processor time, most of it the frameworks' imports and compilation.
Run     python -m recipes.image_classification
        python -m recipes.image_classification --dataset tfds:mnist
        python -m recipes.image_classification --dataset zip:cifar10_jpeg.zip --flip
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import harness
from recipes.data import images
from recipes.data.image_batches import Splits, scale, training_batches

RECIPE = "image_classification"
TITLES = {"cnn": "CNN", "sa_cnn": "CNN + self-attention"}
SCORES = (
    harness.Score("accuracy", "test accuracy", is_percentage=True, digits=2),
    harness.Score("loss", "test loss"),
)
NOTES = (
    "Both models of a seed start from the same weights in the layers they share. gamma is the gain "
    "that the model learnt for its attention; it starts at 0, the plain CNN.",
)


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train the same CNN without and with self-attention, and compare them."""

    dataset: str = "digits"  # digits, tfds:<name>, folder:<path> or zip:<path>
    data_dir: Path | None = None  # where TensorFlow Datasets keeps its files
    classes_from: int | None = None  # level of the folders that are classes, 1 at the top
    image_size: int | None = None  # resize every image to this many pixels a side
    split_seed: int = 0  # draws the test images, where the source has no split of its own

    # What follows has other defaults for other data sets, see PRESETS.
    epochs: int = 15  # passes over the training images
    batch_size: int = 60  # images in one training step
    learning_rate: float = 3e-3  # highest rate, reached after one epoch of warm-up; AdamW
    filters: tuple[int, ...] = (32, 64)  # channels of each stage
    stem_stride: int = 1  # stride of the first convolution; 2 halves the sides of large images
    attention_after: tuple[int, ...] = (0,)  # stages, counted from 0, that end with attention
    key_stride: int = 1  # side of the windows in which keys and values are pooled
    shift: int = 1  # augmentation: largest random shift in pixels
    flip: bool = False  # augmentation: mirror half of the images

    num_heads: int = 2  # heads of each attention layer
    dropout: float = 0.0  # fraction of the features dropped before the logits

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        arguments.check_integers(0, shift=self.shift)
        if not self.attention_after:
            raise arguments.error(
                "`attention_after` must name at least one stage, or both models are the same",
                attention_after=self.attention_after,
            )


# For a data set that is not named below.
PHOTOS: dict[str, Any] = {"seeds": 1, "batch_size": 128, "filters": (32, 64, 128)}
PHOTOS |= {"attention_after": (1,), "key_stride": 2, "shift": 4}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "tfds:mnist": {
        "seeds": 2,
        "epochs": 3,
        "batch_size": 128,
        "filters": (24, 48),
        "stem_stride": 2,
        "attention_after": (1,),
        "shift": 2,
    },
    "tfds:cifar10": {**PHOTOS, "flip": True},
}


def presets(given: Settings) -> Settings:
    """The defaults for the data set that the flags name."""
    return Settings(dataset=given.dataset, **PRESETS.get(given.dataset, PHOTOS))


def build(splits: Splits, settings: Settings, kind: str, seed: int) -> Any:
    """A compiled model. With and without attention, the layers they share start out equal."""
    import keras

    from kattn.models import sa_cnn

    names = ("filters", "stem_stride", "num_heads", "key_stride", "dropout")
    options = {name: getattr(settings, name) for name in names}
    shape, classes = splits.data.image_shape, len(splits.data.classes)
    make = functools.partial(sa_cnn, shape, classes, data_format="channels_last", **options)
    keras.utils.set_random_seed(seed)
    model = plain = make(attention_after=(), name="cnn")
    if kind == "sa_cnn":
        model = make(attention_after=settings.attention_after, name="sa_cnn")
        for layer in plain.layers:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    optimizer = harness.adamw(settings.learning_rate, settings.weight_decay)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def evaluate(x: np.ndarray, y: np.ndarray, batch_size: int, model: Any) -> dict[str, float]:
    """Cross-entropy and accuracy on images."""
    return harness.cross_entropy_and_accuracy(harness.predict(model, scale(x), batch_size), y)


def attention_layers(model: Any) -> list[Any]:
    """The attention layers of a model."""
    return [layer for layer in model.layers if layer.name.endswith("attention")]


def gains(model: Any) -> dict[str, dict[str, float]]:
    """The gain that each attention layer has learnt; it starts at 0, the plain CNN."""
    return {"gamma": {layer.name: float(layer.gamma.numpy()) for layer in attention_layers(model)}}


def sections(splits: Splits, models: Mapping[str, Any], folder: Any) -> dict[str, str]:
    """Where one test image of each of eight classes looks, and which images were used."""
    from kattn.visualize import attention_figure

    if "sa_cnn" not in models:
        return {"Data": splits.section}
    data, model = splits.data, models["sa_cnn"]
    chosen = data.one_of_each_class(8)
    x, truths = scale(data.x_test[chosen]), [data.classes[label] for label in data.y_test[chosen]]
    guesses = [data.classes[label] for label in harness.predict(model, x, len(x)).argmax(-1)]
    pairs = zip(truths, guesses, strict=True)
    titles = [a if a == b else f"{a}\ntaken for {b}" for a, b in pairs]
    text = "Test images, model of seed 0. The circled position asks; colours are where it looks.\n"
    for layer in attention_layers(model):
        draw = functools.partial(attention_figure, model, layer, x, titles=titles)
        text += "\n" + folder.add_figure(f"{layer.name}.png", f"Attention of {layer.name}", draw)
    return {"Where attention looks": text, "Data": splits.section}


def prepare(settings: Settings) -> harness.Job:
    """Read the images, and compare the two models on them."""
    data = images.load(
        settings.dataset,
        data_dir=settings.data_dir,
        image_size=settings.image_size,
        seed=settings.split_seed,
        classes_from=settings.classes_from,
    )
    data = harness.announced(data)
    splits, size = Splits.of(data, settings.batch_size), settings.batch_size
    comparison = harness.Comparison(
        title=f"Image classification on {data.name}, without and with self-attention",
        about=splits.about,
        titles=TITLES,
        scores=SCORES,
        build=functools.partial(build, splits, settings),
        batches=lambda kind, seed: training_batches(
            splits, size, seed, shift=settings.shift, flip=settings.flip
        ),
        validate=functools.partial(evaluate, splits.x_val, splits.y_val, size),
        test=functools.partial(evaluate, data.x_test, data.y_test, size),
        tested=len(data.x_test),
        learnt=gains,
        notes=NOTES,
        sections=functools.partial(sections, splits),
    )
    comparison.build("sa_cnn", 0)  # so that sizes no layer takes are refused at once
    return harness.compare(comparison, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments, presets), prepare)


if __name__ == "__main__":
    sys.exit(main())
