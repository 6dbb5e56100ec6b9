"""Does self-attention help a small CNN? The same network without and with it, on real images.

Task    Classify images. Both models get the same seeds, first weights, data order and epochs.
Data    digits (default; in scikit-learn, no network): 1,200 + 597 grey images of 8 x 8 pixels.
        tfds:<name>, folder:<path>, zip:<path>: see --dataset.
Result  Test accuracy in percent, CNN and CNN + self-attention, mean and standard deviation.
        digits, 3 seeds: 98.44 (0.19) and 97.60 (0.10) on TensorFlow, 97.93 (0.59) and 97.77 (0.26)
        on JAX, 98.27 (0.10) and 97.99 (0.44) on PyTorch. tfds:mnist, 2 seeds, TensorFlow, with
        batches in another order: 99.23 (0.04) and 99.25 (0.01). One difference is beyond chance, on
        TensorFlow, and against attention: these sets do not need it.
Cost    Whole command on two cores of an AMD EPYC: digits 43 (JAX) to 73 s (PyTorch); tfds:mnist 7
        minutes on a Xeon, with other work beside. Parameters + 2 %, FLOPs + 8 %, step + 24 to 37 %
        (digits).
Run     python -m recipes.image_classification
        python -m recipes.image_classification --dataset tfds:mnist
        python -m recipes.image_classification --dataset zip:cifar10_jpeg.zip --flip
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from recipes import harness, training
from recipes.data import images
from recipes.data.images import ImageData

RECIPE = "image_classification"
PLAIN, ATTENTION = MODELS = ("cnn", "sa_cnn")
TITLES = {PLAIN: "CNN", ATTENTION: "CNN + self-attention"}


@dataclass(frozen=True)
class Settings(training.TrainingFlags):
    """Train the same CNN without and with self-attention, and compare them."""

    dataset: str = "digits"  # digits, tfds:<name>, folder:<path> or zip:<path>
    data_dir: Path | None = None  # where TensorFlow Datasets keeps its files
    image_size: int | None = None  # resize every image to this many pixels a side
    split_seed: int = 0  # of the test split, where the source has none
    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    output: Path | None = None  # None: a new folder runs/image_classification-<time>
    resume: bool = False  # go on with the run that was stopped (the newest, or the one in --output)

    # What follows has other defaults for other data sets, see PRESETS.
    seeds: int = 3  # runs of each model
    epochs: int = 15
    batch_size: int = 60
    learning_rate: float = 3e-3  # the peak, after one epoch of warm-up; AdamW
    filters: tuple[int, ...] = (32, 64)  # channels of each stage
    stem_stride: int = 1  # 2 halves the sides at once: for large images
    attention_after: tuple[int, ...] = (0,)  # stages, from 0, that end with attention
    key_stride: int = 1  # pooling of keys and values
    shift: int = 1  # augmentation: largest random shift in pixels
    flip: bool = False  # augmentation: mirror half of the images

    num_heads: int = 2  # of each attention layer
    weight_decay: float = 0.01
    dropout: float = 0.0  # before the logits
    checkpoint_every: int = 100  # steps between two backups within an epoch


PHOTOS: dict[str, Any] = {  # for a data set that is not named below
    "seeds": 1,
    "batch_size": 128,
    "filters": (32, 64, 128),
    "attention_after": (1,),
    "key_stride": 2,
    "shift": 4,
}
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


def parse(arguments: Sequence[str] | None) -> Settings:
    """The flags, over the defaults of the data set that they name."""
    program = f"python -m recipes.{RECIPE}"
    dataset = tyro.cli(Settings, args=arguments, prog=program).dataset
    defaults = Settings(dataset=dataset, **PRESETS.get(dataset, PHOTOS))
    return tyro.cli(Settings, args=arguments, prog=program, default=defaults)


def check(settings: Settings) -> None:
    """Raise ValueError for what no layer or loader would refuse."""
    for name in ("seeds", "epochs", "batch_size", "checkpoint_every"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1: {name}={getattr(settings, name)}")
    if settings.shift < 0:
        raise ValueError(f"shift must be at least 0 pixels: shift={settings.shift}")
    if not settings.attention_after:
        raise ValueError(
            "attention_after must name at least one stage, or both models are the same: "
            f"attention_after={settings.attention_after}"
        )


# --- Data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """The training images in two: one part to fit, one to watch. Test images are used once."""

    data: ImageData
    x_fit: np.ndarray
    y_fit: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray

    @classmethod
    def of(cls, data: ImageData, batch_size: int) -> "Splits":
        """A tenth of the training images, the same in every run, watches."""
        order = np.random.default_rng(0).permutation(len(data.x_train))
        cut = max(len(order) // 10, 1)
        val, fit = order[:cut], order[cut:]
        if batch_size > len(fit):
            raise ValueError(
                "batch_size must be at most the number of images to fit: "
                f"batch_size={batch_size}, images={len(fit)}"
            )
        x, y = data.x_train, data.y_train
        return cls(data, x[fit], y[fit], x[val], y[val])


def scale(x: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return x.astype("float32") / 127.5 - 1


def augment(x: np.ndarray, rng: np.random.Generator, *, shift: int, flip: bool) -> np.ndarray:
    """Move each image `(B, H, W, C)` by up to `shift` pixels, repeating its border; mirror half."""
    batch, height, width, _ = x.shape
    if shift:
        dy, dx = rng.integers(-shift, shift + 1, (2, batch, 1))
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(width) + dx, 0, width - 1)
        x = x[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if flip:
        mirrored = rng.random(batch) < 0.5
        x = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    return x


def batches(splits: Splits, settings: Settings, seed: int) -> Any:
    """Shuffled, augmented, whole batches; the same for both models and after --resume."""
    from kattn.data import EpochShuffled

    def prepare(batch: Any, rng: np.random.Generator) -> Any:
        x, y = batch
        return scale(augment(x, rng, shift=settings.shift, flip=settings.flip)), y

    return EpochShuffled(
        (splits.x_fit, splits.y_fit),
        batch_size=settings.batch_size,
        seed=seed,
        drop_remainder=True,
        transform=prepare,
    )


# --- Models -------------------------------------------------------------------------------------


def build(kind: str, splits: Splits, settings: Settings, seed: int) -> Any:
    """A compiled model. With and without attention, the layers they share start out equal."""
    import keras

    from kattn.models import sa_cnn

    options: dict[str, Any] = {
        "filters": settings.filters,
        "stem_stride": settings.stem_stride,
        "num_heads": settings.num_heads,
        "key_stride": settings.key_stride,
        "dropout": settings.dropout,
        "data_format": "channels_last",
    }
    shape, classes = splits.data.image_shape, len(splits.data.classes)
    keras.utils.set_random_seed(seed)
    model = sa_cnn(shape, classes, attention_after=(), name=PLAIN, **options)
    if kind == ATTENTION:
        plain = model
        after = settings.attention_after
        model = sa_cnn(shape, classes, attention_after=after, name=ATTENTION, **options)
        for layer in plain.layers:
            model.get_layer(layer.name).set_weights(layer.get_weights())

    optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def evaluate(model: Any, x: np.ndarray, y: np.ndarray, batch_size: int) -> dict[str, float]:
    """Cross-entropy and accuracy. The last batch is filled up: a new shape means compiling anew."""
    parts = []
    for start in range(0, len(x), 64 * batch_size):
        part = x[start : start + 64 * batch_size]
        filled = np.resize(part, (-(-len(part) // batch_size) * batch_size, *part.shape[1:]))
        parts.append(model.predict(scale(filled), batch_size=batch_size, verbose=0)[: len(part)])
    logits = np.concatenate(parts).astype("float64")
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    loss = log_sum - logits[np.arange(len(y)), y]
    return {"loss": float(loss.mean()), "accuracy": float((logits.argmax(-1) == y).mean())}


# --- Training -----------------------------------------------------------------------------------


def fit(kind: str, seed: int, splits: Splits, settings: Settings, folder: harness.RunFolder) -> Any:
    """Train one model from one seed, from its last backup if there is one; write its result."""
    import keras

    from kattn.callbacks import ExactResume

    name = f"{kind}-seed{seed}"
    model, data = build(kind, splits, settings, seed), batches(splits, settings, seed)
    total = len(data) * settings.epochs
    warm_up = min(len(data), total // 4)
    rules = training.make_callbacks(settings, settings.learning_rate, total, warm_up)
    watch = watching(kind, seed, len(data), splits, settings)
    backups = folder.path / f"checkpoints/{name}-backups"
    resume = ExactResume(backups, every=settings.checkpoint_every, callbacks=rules, data=data)
    history = model.fit(
        data,
        epochs=settings.epochs,
        verbose=0,
        shuffle=False,
        callbacks=[*rules, watch, resume],
    )
    columns = history.history
    epochs = [
        {"epoch": epoch + 1, **{name: values[i] for name, values in columns.items()}}
        for i, epoch in enumerate(history.epoch)
    ]
    test = evaluate(model, splits.data.x_test, splits.data.y_test, settings.batch_size)
    gains = {
        layer.name: float(keras.ops.convert_to_numpy(layer.gamma))
        for layer in model.layers
        if layer.name.endswith("attention")
    }
    with folder.writing(f"checkpoints/{name}.keras") as path:
        model.save(path)
    folder.write_json(
        f"history/{name}.json",
        {"model": kind, "seed": seed, "epochs": epochs, "test": test, "gamma": gains},
    )
    shutil.rmtree(backups)
    return model


def watching(kind: str, seed: int, steps: int, splits: Splits, settings: Settings) -> Any:
    """A callback that validates, times epochs and shows how far the training is."""
    import keras

    label = f"{TITLES[kind]}, seed {seed} ({seed + 1} of {settings.seeds})"

    class Watching(keras.callbacks.Callback):
        progress: harness.Progress | None = None

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if self.progress is None:
                self.progress = harness.Progress(label, settings.epochs, steps, first_epoch=epoch)
            self.start = time.perf_counter()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.progress.step()  # type: ignore[union-attr]

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["seconds"] = time.perf_counter() - self.start
            val = evaluate(self.model, splits.x_val, splits.y_val, settings.batch_size)
            logs |= {f"val_{key}": value for key, value in val.items()}
            shown = ("loss", "accuracy", "val_loss", "val_accuracy")
            self.progress.epoch(epoch + 1, {key: logs[key] for key in shown})  # type: ignore

        def on_train_end(self, logs: Any = None) -> None:
            if self.progress is not None:
                self.progress.close()

    return Watching()


def measure_steps(
    models: Mapping[str, Any], splits: Splits, settings: Settings
) -> dict[str, float]:
    """Seconds of one training step of each model, measured in turns."""
    import keras

    x, y = batches(splits, settings, seed=0)[0]
    steps = 10

    def seconds_per_step(model: Any) -> float:
        stamps: list[float] = []
        stamp = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda *_, **__: stamps.append(time.perf_counter()),
            on_epoch_end=lambda *_, **__: stamps.append(
                time.perf_counter()
            ),  # metrics read: all is done
        )
        same = ((x, y) for _ in range(steps))
        model.fit(same, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[stamp])
        return (stamps[-1] - stamps[0]) / steps

    cases = {kind: lambda model=model: seconds_per_step(model) for kind, model in models.items()}
    return harness.measure_in_turns(cases, turns=5)


# --- Where attention looks ------------------------------------------------------------------------


def attention_figure(model: Any, layer: Any, splits: Splits, batch_size: int) -> Figure:
    """Where three positions of one image of each of eight classes look; mean over heads."""
    import keras

    data = splits.data
    labels = [label for label in range(len(data.classes)) if (data.y_test == label).any()][:8]
    picked = [int(np.argmax(data.y_test == label)) for label in labels]
    x = data.x_test[picked]
    filled = scale(np.resize(x, (batch_size, *x.shape[1:])))
    features = keras.Model(model.input, [layer.input, model.output])
    maps_in, logits = features.predict(filled, batch_size=batch_size, verbose=0)
    weights = layer.attention_weights(keras.ops.convert_to_tensor(maps_in[: len(x)]))
    weights = keras.ops.convert_to_numpy(weights).mean(1)  # (B, T, S)
    height, width = maps_in.shape[1:3]
    stride = layer.key_stride
    keys = (-(-height // stride), -(-width // stride))
    # Edges of the key grid in units of the image's sides; "same" pooling pads half of it before.
    before = [
        (count * stride - side) // 2 for count, side in zip(keys, (height, width), strict=True)
    ]
    top, left = -before[0] / height, -before[1] / width
    bottom, right = top + keys[0] * stride / height, left + keys[1] * stride / width

    figure = Figure(figsize=(1.35 * len(picked) + 0.6, 6.2), layout="constrained")
    axes: Any = figure.subplots(4, len(picked), squeeze=False)
    for column, (image, label) in enumerate(zip(x, labels, strict=True)):
        guess = int(logits[column].argmax())
        wrong = "" if guess == label else f"\ntaken for {data.classes[guess]}"
        title = f"{data.classes[label]}{wrong}"
        axes[0, column].set_title(title, fontsize=9, color="crimson" if wrong else "black")
        _show(axes[0, column], image)
        for row, (i, j) in enumerate(query_positions(image, height, width), start=1):
            _show(axes[row, column], image, brightness=0.45)
            seen = weights[column, i * width + j].reshape(keys)
            axes[row, column].imshow(
                seen,
                cmap="inferno",
                alpha=np.sqrt(seen / seen.max()),
                extent=(left, right, bottom, top),
            )
            y, x_ = (i + 0.5) / height, (j + 0.5) / width
            axes[row, column].plot(x_, y, "o", ms=6, mfc="none", mec="cyan", mew=1.6)
    rows = ("image", "from high contrast", "from the same, far off", "from low contrast")
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name, fontsize=9)
    gain = float(keras.ops.convert_to_numpy(layer.gamma))
    figure.suptitle(
        f"Where the circled position looks ({layer.name}, mean of {layer.num_heads} heads, "
        f"{keys[0]} x {keys[1]} keys, gamma = {gain:.2f}); bright = much, each map for itself",
        fontsize=10,
    )
    return figure


def query_positions(image: np.ndarray, height: int, width: int) -> list[tuple[int, int]]:
    """Of `height` x `width` cells: one of high contrast, another far from it, one of low contrast.

    Contrast is with the image's border, which often is the background.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    contrast = np.abs(image - np.median(border, 0)).sum(-1)
    rows = np.arange(contrast.shape[0]) * height // contrast.shape[0]
    columns = np.arange(contrast.shape[1]) * width // contrast.shape[1]
    cells = np.zeros((height, width))
    np.add.at(cells, (rows[:, None], columns[None]), contrast)
    first = np.unravel_index(cells.argmax(), cells.shape)
    distance = np.hypot(*(np.indices(cells.shape) - np.reshape(first, (2, 1, 1))))
    on = cells >= max(np.quantile(cells, 0.8), cells.max() / 4)
    second = np.where(on, distance, -1)
    off = np.where(cells <= np.quantile(cells, 0.2), distance, -1)
    found = (first, *(np.unravel_index(a.argmax(), a.shape) for a in (second, off)))
    return [(int(i), int(j)) for i, j in found]


def _show(axes: Any, image: np.ndarray, brightness: float = 1.0) -> None:
    shown = np.broadcast_to(image, (*image.shape[:2], 3)) * (brightness / 255)
    axes.imshow(shown, extent=(0, 1, 1, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))


# --- Report ---------------------------------------------------------------------------------------


def verdict(accuracies: Mapping[str, Sequence[float]]) -> str:
    """One sentence on the paired differences of test accuracy, in percentage points."""
    pairs = zip(accuracies[PLAIN], accuracies[ATTENTION], strict=True)
    differences = [100 * (attention - plain) for plain, attention in pairs]
    mean, _ = harness.mean_and_spread(differences)
    interval = harness.paired_interval(differences)
    sentence = f"With self-attention the test accuracy is {abs(mean):.2f} points "
    sentence += "higher" if mean >= 0 else "lower"
    if interval is None:
        return f"{sentence} (one seed: nothing can be said about chance)."
    low, high = interval
    told = "which leaves 0 out" if low > 0 or high < 0 else "which includes 0: no clear difference"
    return (
        f"{sentence} (95 % confidence interval of the paired difference over "
        f"{len(differences)} seeds: {low:+.2f} to {high:+.2f}, {told})."
    )


def write_report(
    folder: harness.RunFolder,
    settings: Settings,
    splits: Splits,
    models: Mapping[str, Any],
    backend: str,
) -> str:
    """Plots, and everything the run has to say in `report.md`; returns the verdict."""
    seeds = range(settings.seeds)
    runs = {
        kind: [folder.read_json(f"history/{kind}-seed{n}.json") for n in seeds] for kind in MODELS
    }
    accuracies = {kind: [run["test"]["accuracy"] for run in runs[kind]] for kind in MODELS}
    folder.write_figure(
        "curves.png",
        harness.curves(
            {TITLES[kind]: [run["epochs"] for run in runs[kind]] for kind in MODELS},
            {
                "loss": "training loss",
                "val_loss": "validation loss",
                "val_accuracy": "validation accuracy",
            },
            {TITLES[kind]: accuracies[kind] for kind in MODELS},
            "test accuracy, one line per seed",
        ),
    )
    maps = [layer for layer in models[ATTENTION].layers if layer.name.endswith("attention")]
    for layer in maps:
        figure = attention_figure(models[ATTENTION], layer, splits, settings.batch_size)
        folder.write_figure(f"{layer.name}.png", figure)

    costs = {kind: harness.layer_costs(model) for kind, model in models.items()}
    steps = measure_steps(models, splits, settings)
    said = verdict(accuracies)
    accuracy = float(np.mean(accuracies[PLAIN]))
    data = splits.data
    height, width, channels = data.image_shape
    used = harness.versions("keras", "numpy", backend)
    facts = {**harness.machine(), "backend": backend, **used}
    text = f"""# Image classification on {data.name}, without and with self-attention

**{said}**

{_summary(runs, costs, steps)}

- Test accuracy: mean ± standard deviation over seeds ({settings.seeds}), weights of the last epoch.
  The test images were used once per model and seed, after training. That there are only
  {len(data.x_test):,} of them gives any one accuracy a standard error of about
  {100 * np.sqrt(accuracy * (1 - accuracy) / len(data.x_test)):.2f} points.
- Both models of a seed start from the same weights in the layers they share and see the same images
  in the same order, for {settings.epochs} epochs.
- MFLOPs: one image forward, counted by `recipes.harness.layer_costs` from the layers' shapes:
  2 per multiply-add of convolution, dense layers, attention; normalisation, activations, pooling
  and softmax are not counted. A training step is about three times that per image.
- Step: one training step of {settings.batch_size} images, median over 5 turns of 10 steps, the two
  models measured in turns after a warm-up. Fit: mean over seeds, with compilation.

## By seed

{_by_seed(runs)}

Difference is in points. gamma is the gain the model learnt for its attention layer(s); it starts
at 0, the plain CNN.

## Learning curves

Lines: mean over seeds; bands: from the lowest to the highest seed. Validation: a tenth of the
training images, held out; nothing was chosen by it.

![Learning curves](curves.png)

{_rate_found(settings)}## Where attention looks

Test images, model of seed 0. The cyan circle is the position that asks, the colours are where it
looks.

{"".join(f"![Attention of {layer.name}]({layer.name}.png)" for layer in maps)}

## Data

{data.name}: {len(splits.x_fit):,} images to fit, {len(splits.x_val):,} to validate and
{len(data.x_test):,} to test; {height} x {width} pixels, {channels} channel(s),
{len(data.classes)} classes. Split: {data.split}.

## Layers of the model with attention

{_layers(costs[ATTENTION])}

## Machine and versions

{harness.table(["What", "Value"], list(facts.items()), numbers=False)}

## Settings

{harness.table(["Setting", "Value"], list(recorded(settings, backend).items()), numbers=False)}
"""
    folder.write_text("report.md", text)
    return said


Runs = Mapping[str, Sequence[dict[str, Any]]]  # by kind of model, then by seed


def _rate_found(settings: Settings) -> str:
    if not settings.lr_find:
        return ""
    return f"""## The learning rate

Both models trained with a peak of {settings.learning_rate:.3g}, which a range test of the CNN found
(the valley of its curve).

![Loss over learning rate](lr_find.png)

"""


def _summary(runs: Runs, costs: Mapping[str, Sequence[harness.LayerCost]], steps: Any) -> str:
    header = [
        "Model",
        "Test accuracy, %",
        "Test loss",
        "Parameters",
        "MFLOPs",
        "Step, ms",
        "Fit, s",
    ]
    rows = []
    for kind in MODELS:
        mean, spread = harness.mean_and_spread([run["test"]["accuracy"] for run in runs[kind]])
        loss, _ = harness.mean_and_spread([run["test"]["loss"] for run in runs[kind]])
        seconds = [sum(epoch["seconds"] for epoch in run["epochs"]) for run in runs[kind]]
        rows.append(
            [
                TITLES[kind],
                f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f}" if len(runs[kind]) > 1 else ""),
                f"{loss:.4f}",
                f"{sum(cost.parameters for cost in costs[kind]):,}",
                f"{sum(cost.flops for cost in costs[kind]) / 1e6:.2f}",
                f"{1e3 * steps[kind]:.1f}",
                f"{np.mean(seconds):.1f}",
            ]
        )
    return harness.table(header, rows)


def _by_seed(runs: Runs) -> str:
    rows = []
    for plain, attention in zip(runs[PLAIN], runs[ATTENTION], strict=True):
        first, second = (100 * run["test"]["accuracy"] for run in (plain, attention))
        gains = ", ".join(f"{gain:+.3f}" for gain in attention["gamma"].values())
        rows.append(
            [plain["seed"], f"{first:.2f}", f"{second:.2f}", f"{second - first:+.2f}", gains]
        )
    return harness.table(["Seed", TITLES[PLAIN], TITLES[ATTENTION], "Difference", "gamma"], rows)


def _layers(costs: Sequence[harness.LayerCost]) -> str:
    rows = [
        [
            cost.layer,
            cost.kind,
            " x ".join(map(str, cost.output)),
            f"{cost.parameters:,}",
            f"{cost.flops:,}" if cost.flops else "not counted",
        ]
        for cost in costs
        if cost.parameters
    ]
    return harness.table(["Layer", "Kind", "Output", "Parameters", "FLOPs"], rows)


# --- Main -----------------------------------------------------------------------------------------


def recorded(settings: Settings, backend: str) -> dict[str, Any]:
    """What the result depends on."""
    values = dataclasses.asdict(settings) | {"backend": backend}
    for name in ("output", "resume", "checkpoint_every"):
        del values[name]
    values["data_dir"] = None if settings.data_dir is None else str(settings.data_dir)
    return values


def run(settings: Settings, splits: Splits, folder: harness.RunFolder, backend: str) -> None:
    """Train what is not trained yet, then report."""
    import keras

    models = {}
    if settings.lr_find:
        model, data = build(PLAIN, splits, settings, seed=0), batches(splits, settings, seed=0)
        rate = training.find_rate(model, data, folder, settings)
        settings = dataclasses.replace(settings, learning_rate=rate)
    for seed in range(settings.seeds):
        for kind in MODELS:
            if (folder.path / f"history/{kind}-seed{seed}.json").is_file():
                continue
            model = fit(kind, seed, splits, settings, folder)
            if seed == 0:
                models[kind] = model  # for the maps and step times
    for kind in MODELS:
        if kind not in models:
            models[kind] = keras.saving.load_model(folder.path / f"checkpoints/{kind}-seed0.keras")
    models = {kind: models[kind] for kind in MODELS}
    print(f"\n{write_report(folder, settings, splits, models, backend)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    settings = parse(arguments)
    start = time.perf_counter()
    try:  # all that can be wrong with what the user gave
        check(settings)
        backend = harness.choose_backend(settings.backend)
        training.make_clipping(settings.clip)
        data = images.load(
            settings.dataset,
            data_dir=settings.data_dir,
            image_size=settings.image_size,
            seed=settings.split_seed,
        )
        splits = Splits.of(data, settings.batch_size)
        build(ATTENTION, splits, settings, seed=0)
        folder = harness.open_run(
            RECIPE, recorded(settings, backend), output=settings.output, resume=settings.resume
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if folder.report.exists():
        print(f"This run is finished: {folder.report}")
        return 0
    counts = " + ".join(f"{len(x):,}" for x in (splits.x_fit, splits.x_val, data.x_test))
    print(
        f"{data.name}: {counts} images, {settings.seeds} seed(s) x {settings.epochs} epochs, "
        f"{backend}; writing {folder.path}"
    )
    try:
        run(settings, splits, folder, backend)
    except KeyboardInterrupt:
        print("\nStopped. The same command with --resume goes on.", file=sys.stderr)
        return 130
    print(f"Report: {folder.report}  ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
