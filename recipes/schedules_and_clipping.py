"""Which schedule, and which clipping? All of them on two small tasks, with an equal budget.

Task    A. Classify digits with an MLP under each schedule of the learning rate. B. Learn text by
        characters with a small Transformer; a few batches, the same in every run, are corrupted
        (targets permuted, weight 100), under each way of clipping.
Data    A. digits (in scikit-learn): 1,200 + 597 images of 8 x 8. B. Python's own documentation, as
        the standard library has it (`pydoc_data.topics`; its text depends on the version of
        Python), or --text FILE; the last tenth is held out. No network.
Result  3 seeds, on each of TensorFlow, JAX and PyTorch. A: mean test losses of 0.28 (Smith's
        one-cycle) to 0.35 (exp_range), 0.30 to 0.32 with a constant rate. Of 17 differences to that
        none is beyond chance on JAX and PyTorch, one on TensorFlow, as chance alone makes of so
        many: three seeds and 597 images cannot tell these schedules apart. B: spikes cost 1.0 nats
        of the validation loss (1.97 without them) where nothing is clipped, and most are not
        recovered from before the next. They cost nothing measurable with a global norm, ZClip or
        SpikeGuard's skips; 0.02 with AutoClip, 0.04 to 0.1 with norms of each weight, AGC or
        SpikeGuard going back, of which only the last is beyond chance on all three; 0.25 with
        values.
Cost    Whole command on two cores of an AMD EPYC that others used, too: 4.1 (JAX) to 4.5 minutes
        (PyTorch), of which 2.6 to 3.8 minutes of CPU time.
Run     python -m recipes.schedules_and_clipping
        python -m recipes.schedules_and_clipping --schedule cosine one_cycle --clip zclip --lr-find
        python -m recipes.schedules_and_clipping --schedule --text tiny_shakespeare.txt
"""

import dataclasses
import itertools
import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from recipes import harness
from recipes.data import images

RECIPE = "schedules_and_clipping"
CONSTANT, NONE, CLEAN = "constant", "none", "clean"
SCHEDULES = {
    CONSTANT: "constant",
    "linear": "linear",
    "polynomial": "polynomial, power 2",
    "exponential": "exponential, to 1 %",
    "step": "step, 0.1 at 1/2 and 3/4",
    "inverse_sqrt": "inverse square root",
    "noam": "Noam",
    "cosine": "cosine",
    "warm_restarts": "warm restarts (SGDR)",
    "one_cycle": "one-cycle, fastai's",
    "smith_one_cycle": "one-cycle, Smith's",
    "triangular": "triangular",
    "triangular2": "triangular2",
    "exp_range": "exp_range",
    "wsd_linear": "warm-up, stable, linear",
    "wsd_sqrt": "warm-up, stable, 1 - sqrt",
    "flat_cosine": "flat, cosine",
    "warm_up_cosine": "warm-up, cosine",
}
# About what the largest gradients are without spikes (norms of 1 to 2 together, up to 1.5 and
# numbers up to 0.2 in the embedding), so that it is the spikes that are clipped. Other ways have
# the defaults of `GradientClipping`.
THRESHOLDS = {"global_norm": 2.0, "norm": 1.0, "value": 0.05}
CLIPPINGS = {  # those next to each other that share a rule share a compiled model
    NONE: "none",
    "global_norm": "global norm, 2",
    "norm": "norm of each weight, 1",
    "value": "value, 0.05",
    "agc": "AGC, 0.01, head left out",
    "autoclip": "AutoClip, 10 %",
    "zclip": "ZClip, z 2.5",
    "spike_guard": "SpikeGuard, skips",
    "roll_back": "SpikeGuard, goes back",
}
TITLES = {CLEAN: "no spikes, no clipping", **CLIPPINGS}
WINDOW = 10  # steps over which the training loss is smoothed
MARGIN = 0.02  # nats above the level before a spike that count as recovered
LOOK = 10  # batches between the looks of the SpikeGuard that goes back


@dataclass(frozen=True)
class Settings:
    """Compare schedules of the learning rate on digits, and ways of clipping on spiking text."""

    schedule: tuple[str, ...] = tuple(SCHEDULES)  # to compare with constant; no name: no part A
    clip: tuple[str, ...] = tuple(CLIPPINGS)  # to compare with none; no name: no part B
    lr_find: bool = False  # take the peak rates from a range test
    text: Path | None = None  # a text file in UTF-8; None: the documentation of Python
    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    output: Path | None = None  # None: a new folder runs/schedules_and_clipping-<time>
    resume: bool = False  # go on with the run that was stopped (the newest, or the one in --output)

    seeds: int = 3  # runs of each schedule and each clipping
    weight_decay: float = 0.01
    checkpoint_every: int = 100  # steps between two backups within an epoch

    digits_rate: float = 3e-3  # the peak; AdamW
    digits_epochs: int = 15
    digits_batch: int = 64
    hidden: int = 64  # width of the two hidden layers

    text_rate: float = 3e-3  # the peak; AdamW, a tenth of warm-up, a fifth of linear decay
    text_steps: int = 300
    text_batch: int = 8  # windows
    length: int = 64  # characters in a window
    width: int = 64
    blocks: int = 1
    num_heads: int = 4
    spikes: tuple[int, ...] = (120, 170, 220)  # steps, from 0, whose batch is corrupted
    spike_weight: float = 100.0  # of each example in them


def check(settings: Settings) -> None:
    """Raise ValueError for what no layer or loader would refuse."""
    for name, known in (("schedule", SCHEDULES), ("clip", CLIPPINGS)):
        unknown = [each for each in getattr(settings, name) if each not in known]
        if unknown:
            raise ValueError(f"{name} must be of {', '.join(known)}: {name}={', '.join(unknown)}")
    if not settings.schedule and not settings.clip:
        raise ValueError("There must be something to compare: schedule=(), clip=()")
    for name, least in (
        *((name, 1) for name in ("seeds", "checkpoint_every", "digits_epochs", "digits_batch")),
        *((name, 1) for name in ("hidden", "text_batch", "length", "width", "blocks", "num_heads")),
        ("text_steps", 10),
    ):
        value = getattr(settings, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}: {name}={value}")
    if settings.width % settings.num_heads or (settings.width // settings.num_heads) % 2:
        raise ValueError(
            "width must be an even multiple of num_heads: "
            f"width={settings.width}, num_heads={settings.num_heads}"
        )
    edges = (-1, *settings.spikes, settings.text_steps)
    if not settings.spikes or any(b - a <= WINDOW for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"spikes must be steps with at least {WINDOW} before, between and after them: "
            f"spikes={settings.spikes}, text_steps={settings.text_steps}"
        )


# --- What is compared ---------------------------------------------------------------------------


def make_schedule(name: str, peak: float, steps: int) -> tuple[Any, Any]:
    """A schedule of `steps` updates that is never above `peak`, and that of beta_1 or None."""
    from kattn import schedules

    tenth, fifth = max(steps // 10, 1), max(steps // 5, 1)

    def wsd(shape: str) -> Any:
        return schedules.WarmupStableDecay(
            peak, steps, warmup_steps=tenth, decay_steps=fifth, shape=shape
        )

    def cyclical(shape: str, **options: Any) -> Any:
        return schedules.Cyclical(peak / 10, peak, max(steps // 8, 1), shape=shape, **options)

    makers = {
        CONSTANT: lambda: schedules.Constant(peak),
        "linear": lambda: schedules.Linear(peak, 0.0, steps),
        "polynomial": lambda: schedules.Polynomial(peak, 0.0, steps, power=2.0),
        "exponential": lambda: schedules.Exponential(peak, 0.01, steps),
        "step": lambda: schedules.Step(peak, (steps // 2, 3 * steps // 4), factor=0.1),
        "inverse_sqrt": lambda: schedules.InverseSquareRoot(peak, tenth),
        # The width is of no account: the scale undoes it.
        "noam": lambda: schedules.Noam(64, tenth, scale=peak * math.sqrt(64 * tenth)),
        "cosine": lambda: schedules.Cosine(peak, 0.0, steps),
        # Cycles of 1, 2 and 4 sevenths.
        "warm_restarts": lambda: schedules.WarmRestarts(peak, math.ceil(steps / 7), growth=2.0),
        "one_cycle": lambda: schedules.OneCycle(peak, steps),
        "smith_one_cycle": lambda: schedules.SmithOneCycle(
            peak / 10, peak, max(9 * steps // 20, 1), steps=steps
        ),
        "triangular": lambda: cyclical("triangular"),
        "triangular2": lambda: cyclical("triangular2"),
        "exp_range": lambda: cyclical("exp_range", gamma=0.01 ** (1 / steps)),
        "wsd_linear": lambda: wsd("linear"),
        "wsd_sqrt": lambda: wsd("sqrt"),
        "flat_cosine": lambda: schedules.FlatCosine(peak, steps),
        "warm_up_cosine": lambda: schedules.WarmUp(
            schedules.Cosine(peak, 0.0, steps - tenth), tenth
        ),
    }
    schedule = makers[name]()
    return schedule, schedule.momentum() if hasattr(schedule, "momentum") else None


def schedule_callbacks(name: str, peak: float, steps: int) -> list[Any]:
    """The callbacks of a schedule."""
    from kattn.callbacks import HyperparameterSchedule, LearningRate

    schedule, momentum = make_schedule(name, peak, steps)
    callbacks = [LearningRate(schedule)]
    if momentum is not None:
        callbacks.append(HyperparameterSchedule("beta_1", momentum))
    return callbacks


def clip_callbacks(name: str) -> list[Any]:
    """The callbacks of a way of clipping; the first sees the norms of gradients."""
    from kattn.callbacks import GradientClipping, SpikeGuard

    if name in ("spike_guard", "roll_back"):
        goes_back = name == "roll_back"
        guard = SpikeGuard(z_threshold=None, every=LOOK) if goes_back else SpikeGuard()
        return [GradientClipping("global_norm", None), guard]
    if name in (CLEAN, NONE):
        return [GradientClipping("global_norm", None)]
    if name == "agc":
        return [GradientClipping("agc", 0.01, groups={"^head/": None})]
    return [GradientClipping(name, THRESHOLDS.get(name))]


def with_baselines(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of schedules and of clippings to train, the baselines first."""
    schedules = {CONSTANT, *settings.schedule} if settings.schedule else set()
    clips = {NONE, *settings.clip} if settings.clip else set()
    return (
        tuple(name for name in SCHEDULES if name in schedules),
        tuple(name for name in TITLES if name in clips or (clips and name == CLEAN)),
    )


# --- Data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A text as numbers of characters, the last tenth of it held out."""

    name: str
    characters: str
    train: np.ndarray
    held_out: np.ndarray

    def windows(self, count: int, length: int, seed: int) -> np.ndarray:
        """`(count, length + 1)` int32 at random places of the part to learn from."""
        places = np.random.default_rng(seed).integers(0, len(self.train) - length, count)
        return self.train[places[:, None] + np.arange(length + 1)]

    def to_validate(self, length: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets in whole batches: another shape would mean compiling anew."""
        count = (len(self.held_out) - 1) // length // batch * batch
        end = count * length
        shape = (count, length)
        return self.held_out[:end].reshape(shape), self.held_out[1 : end + 1].reshape(shape)


def load_text(path: Path | None, length: int, batch: int) -> Text:
    """Read a file, or the documentation that comes with Python.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text in UTF-8, of fewer than two characters, or too short to hold
            out one batch.
    """
    if path is None:
        from pydoc_data.topics import topics

        content = "\n\n".join(topics[name] for name in sorted(topics))
        name = f"the documentation of Python {sys.version_info.major}.{sys.version_info.minor}"
    else:
        if not path.is_file():
            raise FileNotFoundError(f"text must name a file that exists: text={str(path)!r}")
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"text must name a file in UTF-8: text={str(path)!r}") from None
        name = path.name
    characters = "".join(sorted(set(content)))
    if len(characters) < 2:
        raise ValueError(f"text must have two different characters: {characters=}")
    table = {character: number for number, character in enumerate(characters)}
    numbers = np.array([table[character] for character in content], "int32")
    cut = len(numbers) - len(numbers) // 10
    if len(numbers) - cut <= length * batch:
        raise ValueError(
            "text must be more than ten times as long as a batch of windows: "
            f"characters={len(numbers)}, {length=}, {batch=}"
        )
    return Text(name, characters, numbers[:cut], numbers[cut:])


def digits_batches(data: images.ImageData, settings: Settings, seed: int) -> Any:
    """Of the training images; the order depends on seed and epoch."""
    from kattn.data import EpochShuffled

    return EpochShuffled(
        (flat(data.x_train), data.y_train),
        batch_size=settings.digits_batch,
        seed=seed,
        drop_remainder=True,
    )


def flat(x: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1], `(count, H W C)` float32."""
    return x.reshape(len(x), -1).astype("float32") / 127.5 - 1


def text_batches(text: Text, settings: Settings, seed: int, spikes: Sequence[int]) -> Any:
    """One epoch of random windows, with weights; at the steps in `spikes` corrupted."""
    from kattn.data import EpochShuffled

    class Spiking(EpochShuffled):
        def __getitem__(self, index: int) -> Any:
            x, y, weight = super().__getitem__(index)
            if index in spikes:
                rng = np.random.default_rng(index)
                y = rng.permutation(y.ravel()).reshape(y.shape)
                weight = np.full_like(weight, settings.spike_weight)
            return x, y, weight

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "spikes": list(spikes)}

    windows = text.windows(settings.text_steps * settings.text_batch, settings.length, seed)
    x, y = windows[:, :-1], windows[:, 1:]
    return Spiking((x, y, np.ones(x.shape, "float32")), batch_size=settings.text_batch, seed=seed)


# --- Models -------------------------------------------------------------------------------------


def build_digits(data: images.ImageData, settings: Settings, seed: int) -> Any:
    """A compiled MLP."""
    import keras

    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((math.prod(data.image_shape),))
    for number in (1, 2):
        x = keras.layers.Dense(settings.hidden, "relu", name=f"hidden{number}")(x)
    outputs = keras.layers.Dense(len(data.classes), name="head")(x)
    return _compiled(keras.Model(inputs, outputs), settings, metrics=["accuracy"])


def build_text(text: Text, settings: Settings, seed: int) -> Any:
    """A compiled causal Transformer with normalisation before each part of a block."""
    import keras

    from kattn.layers import RotaryEmbedding, SelfAttention

    keras.utils.set_random_seed(seed)
    layers, width = keras.layers, settings.width
    inputs = keras.Input((settings.length,), dtype="int32")
    x = layers.Embedding(len(text.characters), width, name="embedding")(inputs)
    for number in range(settings.blocks):
        name = f"block{number}"
        y = layers.LayerNormalization(name=f"{name}_norm1")(x)
        attention = SelfAttention(
            settings.num_heads,
            causal=True,
            position=RotaryEmbedding(),
            name=f"{name}_attention",
        )
        x = layers.Add(name=f"{name}_add1")([x, attention(y)])
        y = layers.LayerNormalization(name=f"{name}_norm2")(x)
        y = layers.Dense(4 * width, "gelu", name=f"{name}_up")(y)
        y = layers.Dense(width, name=f"{name}_down")(y)
        x = layers.Add(name=f"{name}_add2")([x, y])
    x = layers.LayerNormalization(name="norm")(x)
    outputs = layers.Dense(len(text.characters), name="head")(x)
    return _compiled(keras.Model(inputs, outputs), settings)


def _compiled(model: Any, settings: Settings, **options: Any) -> Any:
    import keras

    optimizer = keras.optimizers.AdamW(1.0, weight_decay=settings.weight_decay)  # see LearningRate
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **options)
    optimizer.build(model.trainable_variables)
    return model


class Restartable:
    """A compiled model that fits start anew, as compiling once more would take seconds."""

    def __init__(self, model: Any):
        import keras

        self.model = model
        self._optimizer = [
            np.array(keras.ops.convert_to_numpy(variable), copy=True)
            for variable in model.optimizer.variables
        ]

    def restart(self, weights: Sequence[np.ndarray]) -> Any:
        """The model with these weights and an optimizer that has seen nothing."""
        self.model.set_weights(weights)
        # Those of callbacks' rules come after, and are reset when another callback takes them over.
        for variable, value in zip(self.model.optimizer.variables, self._optimizer, strict=False):
            variable.assign(value)
        return self.model


# --- Training -----------------------------------------------------------------------------------


def step_losses(progress: harness.Progress) -> Any:
    """A callback that has the loss of each step of an epoch, and moves the bar."""
    import keras

    class StepLosses(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.losses = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            progress.step()
            if logs:  # else the step has been skipped, by ExactResume
                # The logs hold the mean of the epoch so far, and batches are of one size.
                self.losses.append(logs["loss"] * (batch + 1) - math.fsum(self.losses))

        def get_state(self) -> dict[str, Any]:
            return {"losses": list(self.losses)}

        def set_state(self, state: Mapping[str, Any]) -> None:
            self.losses = list(state["losses"])

    return StepLosses()


def train(
    model: Any,
    data: Any,
    callbacks: Sequence[Any],
    settings: Settings,
    folder: harness.RunFolder,
    *,
    name: str,
    epochs: int,
) -> tuple[harness.Progress, dict[str, Any]]:
    """One fit, from its last backup if there is one; the losses of its epochs and last steps."""
    from kattn.callbacks.exact_resume import ExactResume

    progress = harness.Progress(name, epochs, len(data))
    losses = step_losses(progress)
    resume = ExactResume(
        folder.path / "backups" / name,
        every=settings.checkpoint_every,
        keep=1,
        callbacks=[*callbacks, losses],
        data=data,
    )
    start = time.perf_counter()
    history = model.fit(
        data,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, losses, resume],
    )
    return progress, {
        "epochs": [float(loss) for loss in history.history["loss"]],
        "steps": losses.losses,
        "seconds": time.perf_counter() - start,  # since it was last resumed
    }


def finish(
    folder: harness.RunFolder, progress: harness.Progress, name: str, result: Mapping[str, Any]
) -> None:
    """Write the result of a fit, which then needs no backup and is not run again."""
    folder.write_json(f"fits/{name}.json", result)
    shutil.rmtree(folder.path / "backups" / name, ignore_errors=True)
    progress.epoch(progress.epochs, result["test"])
    progress.close()


def unfinished(folder: harness.RunFolder, part: str, kind: str, seeds: int) -> Iterator[Any]:
    """Seeds and names of the fits that have no result yet."""
    for seed in range(seeds):
        name = f"{part}-{kind}-seed{seed}"
        if not (folder.path / f"fits/{name}.json").is_file():
            yield seed, name


def peak_rate(
    part: str, given: float, build: Any, data: Any, settings: Settings, folder: harness.RunFolder
) -> float:
    """The peak of the learning rate: as given, or where a range test finds a valley."""
    from kattn.callbacks.learning_rate_finder import LearningRateFinder

    if not settings.lr_find:
        return given
    found = folder.read_json(f"rate-{part}.json")
    if found is None:
        curve = LearningRateFinder(1e-5, 1.0, 100).run(build(0), data, shuffle=False)
        with folder.writing(f"rate-{part}.png") as path:
            curve.plot(path)
        found = curve.suggestions
        folder.write_json(f"rate-{part}.json", found)
    print(f"{part}: the range test suggests {_rates(found)}", flush=True)
    return found["valley"]


def _rates(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {rate:.2g}" for name, rate in found.items())


def run_digits(names: Sequence[str], settings: Settings, folder: harness.RunFolder) -> None:
    """Part A: train what is not trained yet."""
    data = images.load("digits")

    def build(seed: int) -> Any:
        return build_digits(data, settings, seed)

    batches = digits_batches(data, settings, 0)
    steps = len(batches) * settings.digits_epochs
    peak = peak_rate("digits", settings.digits_rate, build, batches, settings, folder)
    weights = [build(seed).get_weights() for seed in range(settings.seeds)]
    x, y = flat(data.x_test), data.y_test
    for kind in names:
        restartable = None  # each schedule is compiled into the step
        for seed, name in unfinished(folder, "digits", kind, settings.seeds):
            restartable = restartable or Restartable(build(0))
            model = restartable.restart(weights[seed])
            progress, fitted = train(
                model,
                digits_batches(data, settings, seed),
                schedule_callbacks(kind, peak, steps),
                settings,
                folder,
                name=name,
                epochs=settings.digits_epochs,
            )
            test = model.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)
            test = {key: float(value) for key, value in test.items()}
            result = {"schedule": kind, "seed": seed, "peak": peak, "steps": steps, "test": test}
            result |= {key: fitted[key] for key in ("epochs", "seconds")}
            finish(folder, progress, name, result)


def run_text(
    names: Sequence[str], text: Text, settings: Settings, folder: harness.RunFolder
) -> None:
    """Part B: train what is not trained yet."""

    def build(seed: int) -> Any:
        return build_text(text, settings, seed)

    batches = text_batches(text, settings, 0, spikes=())
    peak = peak_rate("text", settings.text_rate, build, batches, settings, folder)
    weights = [build(seed).get_weights() for seed in range(settings.seeds)]
    x, y = text.to_validate(settings.length, settings.text_batch)
    restartable, compiled = None, None
    for kind in names:
        for seed, name in unfinished(folder, "text", kind, settings.seeds):
            callbacks = clip_callbacks(kind)
            signature = [callback.signature() for callback in callbacks]
            if restartable is None or signature != compiled:
                restartable, compiled = Restartable(build(0)), signature
            model = restartable.restart(weights[seed])
            progress, fitted = train(
                model,
                text_batches(text, settings, seed, () if kind == CLEAN else settings.spikes),
                [*schedule_callbacks("wsd_linear", peak, settings.text_steps), *callbacks],
                settings,
                folder,
                name=name,
                epochs=1,
            )
            loss = model.evaluate(x, y, batch_size=settings.text_batch, verbose=0)
            clipping, *guards = callbacks
            result = {
                "clip": kind,
                "seed": seed,
                "peak": peak,
                "test": {"loss": float(loss)},
                "losses": fitted["steps"],
                "seconds": fitted["seconds"],
                "norms": clipping.history,
                "skipped": [step for guard in guards for step in guard.skipped],
                "roll_backs": [step for guard in guards for step in guard.roll_backs],
            }
            finish(folder, progress, name, result)


# --- Statistics ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovery:
    """What a spike did to the training loss."""

    height: float  # of the smoothed loss after it, in nats above the level before
    steps: int | None  # until the level is reached again; None: not before the next spike


def recoveries(losses: Sequence[float], spikes: Sequence[int]) -> list[Recovery]:
    """Height and recovery of each spike, the corrupted steps' own losses left out.

    The level before is the mean loss of `WINDOW` steps. After k steps the level is reached again if
    the mean of the next `WINDOW` steps is at most `MARGIN` above it.
    """
    found = []
    for spike, end in zip(spikes, [*spikes[1:], len(losses)], strict=True):
        level = float(np.mean(losses[spike - WINDOW : spike]))
        after = np.asarray(losses[spike + 1 : end], "float64")
        smooth = np.convolve(after, np.full(WINDOW, 1 / WINDOW), "valid")
        reached = np.flatnonzero(smooth <= level + MARGIN)
        height = float(smooth.max()) - level
        found.append(Recovery(height, int(reached[0]) if len(reached) else None))
    return found


@dataclass(frozen=True)
class Comparison:
    """Paired differences to a baseline, seed by seed."""

    mean: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float], baseline: Sequence[float]) -> "Comparison":
        differences = [value - other for value, other in zip(values, baseline, strict=True)]
        return cls(statistics.fmean(differences), harness.paired_interval(differences))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.4f}"
        low, high = self.interval
        return f"{self.mean:+.4f} [{low:+.4f}, {high:+.4f}]" + (" *" if self.is_clear else "")


def verdict(
    what: str, baseline: str, values: Mapping[str, Sequence[float]], titles: Mapping[str, str]
) -> str:
    """One or two sentences on what differs from the baseline, lower being better."""
    first = values[baseline]
    others = {kind: Comparison.of(each, first) for kind, each in values.items() if kind != baseline}
    if not others:
        return f"{what}: nothing was compared with {titles[baseline]}."
    if any(each.interval is None for each in others.values()):
        return f"{what}: one seed, so nothing can be said about chance."
    parts = []
    for word, is_better in (("lower", True), ("higher", False)):
        found = {k: c for k, c in others.items() if c.is_clear and (c.mean < 0) == is_better}
        names = ", ".join(
            f"{titles[kind]} ({each.mean:+.3f})"
            for kind, each in sorted(found.items(), key=lambda item: item[1].mean)
        )
        parts.append(f"{word} for {names}" if found else f"{word} for none")
    clear = sum(each.is_clear for each in others.values())
    return (
        f"{what}, against {titles[baseline]}: clearly {parts[0]}; clearly {parts[1]}. So the 95 % "
        f"intervals of {clear} of {len(others)} differences leave 0 out; by chance alone "
        f"{0.05 * len(others):.1f} would."
    )


# --- Plots --------------------------------------------------------------------------------------

GREY, RED, BLUE = harness.COLOURS[:3]


def grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure of small panels that share their axes."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in axes[count:]:
        panel.set_axis_off()
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:count])


def schedules_figure(names: Sequence[str], peak: float, steps: int) -> Figure:
    """The rate of each schedule over the steps, and beta_1 where it has a schedule."""
    figure, axes = grid(len(names), 6, 2.0, 1.5)
    t = np.arange(steps)
    for panel, name in zip(axes, names, strict=True):
        schedule, momentum = make_schedule(name, peak, steps)
        panel.plot(t, schedule(t), color=BLUE)
        panel.set_title(SCHEDULES[name], fontsize=8)
        panel.tick_params(labelsize=7)
        if momentum is not None:
            twin = panel.twinx()
            twin.plot(t, momentum(t), color=RED, linewidth=0.8)
            twin.set_ylim(0.8, 1.0)
            twin.spines["top"].set_visible(False)
            twin.tick_params(labelsize=6, colors=RED)
    figure.supylabel("learning rate; beta_1 in red", fontsize=8)
    figure.supxlabel("step", fontsize=8)
    return figure


def results_figure(
    values: Mapping[str, Sequence[float]],
    titles: Mapping[str, str],
    baseline: str,
    others: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    linear: float | None = None,
) -> Figure:
    """Final losses by seed, their differences to the baseline, and other numbers, all by row.

    Differences have a linear scale, or one that is linear up to `linear` and logarithmic beyond.
    """
    count = 2 + len(others)
    height = 0.8 + 0.26 * len(values)
    figure = Figure(figsize=(2.2 + 2.7 * count, max(height, 2.2)), layout="constrained")
    first, second, *rest = figure.subplots(1, count, sharey=True)
    _dots(first, values)
    first.set_title(title, fontsize=9)
    for row, (kind, each) in enumerate(values.items()):
        if kind == baseline:
            continue
        compared = Comparison.of(each, values[baseline])
        if compared.interval is not None:
            colour = RED if compared.is_clear else GREY
            second.plot(compared.interval, [row, row], color=colour, linewidth=1.5)
        second.plot(compared.mean, row, "o", color="black", markersize=4)
    second.axvline(0, color="black", linewidth=0.8)
    if linear is None:
        second.locator_params(axis="x", nbins=5)
    else:
        second.set_xscale("symlog", linthresh=linear)
    second.set_title(f"difference to {titles[baseline]}, 95 %", fontsize=9)
    for panel, (name, numbers) in zip(rest, others.items(), strict=True):
        _dots(panel, numbers)
        panel.set_title(name, fontsize=9)
    first.set_yticks(range(len(values)), [titles[kind] for kind in values], fontsize=8)
    first.invert_yaxis()
    for panel in (first, second, *rest):
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _dots(axes: Any, values: Mapping[str, Sequence[float]]) -> None:
    for row, each in enumerate(values.values()):
        axes.plot(each, [row] * len(each), "o", color=BLUE, alpha=0.5, markersize=4)
        if len(each):
            axes.plot([np.mean(each)] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.5)


Runs = Mapping[str, Sequence[dict[str, Any]]]  # by schedule or clipping, then by seed


def spikes_figure(runs: Runs, spikes: Sequence[int]) -> Figure:
    """The training loss around each spike, less the level before it, mean over seeds."""
    figure, axes = grid(len(runs), 5, 2.2, 1.8)
    ends = [*spikes[1:], len(next(iter(runs.values()))[0]["losses"])]
    for panel, (kind, of_seeds) in zip(axes, runs.items(), strict=True):
        for number, (spike, end) in enumerate(zip(spikes, ends, strict=True)):
            for which, alpha in ((runs[CLEAN], 0.35), (of_seeds, 1.0)):
                losses = np.mean([run["losses"] for run in which], 0)
                level = losses[spike - WINDOW : spike].mean()
                t = np.arange(spike - WINDOW, end)
                shown = losses[t] - level
                shown[WINDOW] = np.nan  # the corrupted batch itself
                colour = "black" if which is runs[CLEAN] else f"C{number}"
                label = f"spike at {spike}" if alpha == 1 else None
                panel.plot(t - spike, shown, color=colour, alpha=alpha, linewidth=1, label=label)
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_title(TITLES[kind], fontsize=8)
        panel.tick_params(labelsize=7)
    axes[1].legend(frameon=False, fontsize=6)
    figure.supxlabel("steps since the spike; grey: without spikes", fontsize=8)
    figure.supylabel("training loss - level before", fontsize=8)
    return figure


def norms_figure(runs: Runs) -> Figure:
    """Norms of gradients step by step, before and after clipping, of seed 0."""
    figure, axes = grid(len(runs), 5, 2.2, 1.8)
    for panel, (kind, (run, *_)) in zip(axes, runs.items(), strict=True):
        for key, colour in (("norm", GREY), ("clipped_norm", BLUE)):
            panel.plot(run["norms"][key], color=colour, linewidth=0.8)
        panel.set_yscale("log")
        panel.set_title(TITLES[kind], fontsize=8)
        panel.tick_params(labelsize=7)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("norm of all gradients; blue: clipped", fontsize=8)
    return figure


# --- Report -------------------------------------------------------------------------------------


def read_runs(folder: harness.RunFolder, part: str, names: Sequence[str], seeds: int) -> Runs:
    """The results of all fits."""
    return {
        kind: [folder.read_json(f"fits/{part}-{kind}-seed{seed}.json") for seed in range(seeds)]
        for kind in names
    }


def finals(runs: Runs, key: str = "loss") -> dict[str, list[float]]:
    """Of each kind, the final result by seed."""
    return {kind: [run["test"][key] for run in of_seeds] for kind, of_seeds in runs.items()}


def with_spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation."""
    mean, spread = harness.mean_and_spread(values)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


def report_digits(runs: Runs, settings: Settings, folder: harness.RunFolder) -> tuple[str, str]:
    """The verdict and the section on part A, with its plots."""
    losses, accuracies = finals(runs), finals(runs, "accuracy")
    percent = {kind: [100 * value for value in each] for kind, each in accuracies.items()}
    one = runs[CONSTANT][0]
    folder.write_figure("schedules.png", schedules_figure(list(runs), one["peak"], one["steps"]))
    others = {"test accuracy, %": percent}
    figure = results_figure(losses, SCHEDULES, CONSTANT, others, "test loss")
    folder.write_figure("digits.png", figure)
    rows = [
        [
            SCHEDULES[kind],
            with_spread([run["epochs"][-1] for run in of_seeds]),
            with_spread(losses[kind]),
            "" if kind == CONSTANT else Comparison.of(losses[kind], losses[CONSTANT]),
            with_spread(percent[kind], 2),
        ]
        for kind, of_seeds in runs.items()
    ]
    header = ["Schedule", "Training loss", "Test loss", "Difference to constant", "Accuracy, %"]
    said = verdict("Test loss on digits", CONSTANT, losses, SCHEDULES)
    return (
        said,
        f"""## A. Schedules, on digits

{said}

{harness.table(header, rows)}

- Mean ± standard deviation over seeds ({settings.seeds}); training loss: mean of the last epoch.
  Difference of test loss: paired by seed, with the 95 % interval of Student's t; * leaves 0 out.
- An MLP with two hidden layers of {settings.hidden}, AdamW, {one["steps"]} updates of
  {settings.digits_batch} images, the same peak rate {one["peak"]:.3g} for all. Runs of a seed start
  from the same weights and see the same images in the same order. Another peak rate, or a longer
  training, may give another order. A test loss may be high although few images are taken for
  others, where the model is too sure of these.
- The test images (597) were used once per run, after training.

![The schedules](schedules.png)

![Results by schedule: one dot per seed, a bar at the mean](digits.png)
""",
    )


def report_text(
    runs: Runs, text: Text, settings: Settings, folder: harness.RunFolder
) -> tuple[str, str]:
    """The verdict and the section on part B, with its plots."""
    losses = finals(runs)
    spikes = settings.spikes
    found = {
        kind: [recoveries(run["losses"], spikes) for run in of_seeds]
        for kind, of_seeds in runs.items()
    }
    flat_found = {kind: [each for one in seeds for each in one] for kind, seeds in found.items()}
    # Of each seed, the mean over spikes: those of a run are not independent.
    heights = {
        kind: [statistics.fmean(each.height for each in one) for one in of_seeds]
        for kind, of_seeds in found.items()
    }
    others: dict[str, dict[str, Sequence[float]]] = {
        "height after a spike, nats": {
            kind: [each.height for each in every] for kind, every in flat_found.items()
        },
        "recovery, steps, if any": {
            kind: [each.steps for each in every if each.steps is not None]
            for kind, every in flat_found.items()
        },
    }
    title = "validation loss, nats per character"
    figure = results_figure(losses, TITLES, CLEAN, others, title, linear=0.1)
    folder.write_figure("text.png", figure)
    folder.write_figure("spikes.png", spikes_figure(runs, spikes))
    folder.write_figure("norms.png", norms_figure(runs))
    rows = [
        [
            TITLES[kind],
            with_spread(losses[kind]),
            "" if kind == CLEAN else Comparison.of(losses[kind], losses[CLEAN]),
            "" if kind in (CLEAN, NONE) else Comparison.of(losses[kind], losses[NONE]),
            with_spread(heights[kind], 3),
            recovered(flat_found[kind]),
            clipped(runs[kind], spikes),
        ]
        for kind in runs
    ]
    header = [
        "Clipping",
        "Validation loss",
        "Difference to no spikes",
        "Difference to none",
        "Height",
        "Recovery, steps",
        "Changed, %",
    ]
    skips = {kind: sum(len(run["skipped"]) for run in runs[kind]) for kind in runs}
    backs = {kind: sum(len(run["roll_backs"]) for run in runs[kind]) for kind in runs}
    peak = runs[NONE][0]["peak"]
    spiking = {kind: each for kind, each in losses.items() if kind != CLEAN}
    said = (
        verdict("Validation loss on text with spikes", NONE, spiking, TITLES)
        + "\n\n"
        + verdict("The same", CLEAN, losses, TITLES)
    )
    return (
        said,
        f"""## B. Clipping, on text with spikes

{said}

{harness.table(header, rows)}

- Losses in nats per character, mean ± standard deviation over seeds ({settings.seeds}), paired
  differences as in part A. "{TITLES[CLEAN]}" is the control: it has what noise alone does to
  height and recovery, and the difference to it is what the spikes cost in spite of clipping.
- At steps {", ".join(map(str, spikes))} the batch is corrupted: targets permuted at random, weight
  {settings.spike_weight:g}; the same in all runs. Height: the largest mean of {WINDOW} training
  losses between the spike and the next, less the mean of the {WINDOW} before it. Recovery: steps
  until the mean of the next {WINDOW} is at most {MARGIN} nats above that level; its median, and
  range, over spikes and seeds, and how many did not recover before the next spike or the end.
- Changed: of the steps that are not corrupted, how many had any gradient made smaller. Span that
  SpikeGuard left out: {skips.get("spike_guard", "not run")}; times that it went back:
  {backs.get("roll_back", "not run")}; in all runs. All have the same batches, so that updates left
  out or taken back are lost, and its schedule ends early by as many.
- {settings.blocks} block(s) of causal self-attention with rotary embedding and an MLP, width
  {settings.width}, windows of {settings.length} characters, AdamW, {settings.text_steps} updates of
  {settings.text_batch} windows, peak rate {peak:.3g}: a tenth of warm-up, a fifth of linear decay.
- Text: {text.name}, {len(text.train) + len(text.held_out):,} characters, of which
  {len(text.characters)} are different; the last tenth validates, and nothing was chosen by it.

![Results by clipping](text.png)

![Loss around the spikes](spikes.png)

![Norms of gradients](norms.png)
""",
    )


def recovered(found: Sequence[Recovery]) -> str:
    """Median and range of recoveries, and how many there were none of."""
    # One that never came is later than all others, in the median, too.
    every = sorted(math.inf if each.steps is None else each.steps for each in found)
    median = statistics.median_low(every)
    missing = sum(each.steps is None for each in found)
    words = [f"{_steps(median)} ({_steps(every[0])} to {_steps(every[-1])})"]
    if missing:
        words.append(f"not: {missing} of {len(found)}")
    return ", ".join(words)


def _steps(value: float) -> str:
    return "not" if math.isinf(value) else f"{value:g}"


def clipped(runs: Sequence[Mapping[str, Any]], spikes: Sequence[int]) -> str:
    """Percentage of clean steps whose gradients were made smaller."""
    shares = []
    for run in runs:
        norm, after = np.array(run["norms"]["norm"]), np.array(run["norms"]["clipped_norm"])
        shares.append(np.delete(after < norm * (1 - 1e-6), spikes).mean())
    return f"{100 * np.mean(shares):.0f}"


def write_report(folder: harness.RunFolder, settings: Settings, text: Text, backend: str) -> str:
    """Plots, and everything the run has to say in `report.md`; returns the verdicts."""
    schedules, clips = with_baselines(settings)
    every, sections = [], []
    if schedules:
        runs = read_runs(folder, "digits", schedules, settings.seeds)
        every.append(runs)
        sections.append((*report_digits(runs, settings, folder), range_test(folder, "digits")))
    if clips:
        runs = read_runs(folder, "text", clips, settings.seeds)
        every.append(runs)
        sections.append((*report_text(runs, text, settings, folder), range_test(folder, "text")))
    seconds = [run["seconds"] for runs in every for of_kind in runs.values() for run in of_kind]
    used = harness.versions("keras", "numpy", backend)
    facts = {**harness.machine(), "backend": backend, **used}
    body = "\n".join(section + test for _, section, test in sections)
    report = f"""# Schedules and clipping

{body}
## Machine and versions

{harness.table(["What", "Value"], list(facts.items()), numbers=False)}

Training took {sum(seconds):.0f} s in {len(seconds)} fits, with compilation.

## Settings

{harness.table(["Setting", "Value"], list(recorded(settings, backend).items()), numbers=False)}
"""
    folder.write_text("report.md", report)
    return "\n\n".join(said for said, *_ in sections)


def range_test(folder: harness.RunFolder, part: str) -> str:
    """What the range test has found, if there was one."""
    found = folder.read_json(f"rate-{part}.json")
    if found is None:
        return ""
    return (
        f"\nThe range test suggests {_rates(found)}; the valley was taken.\n\n"
        f"![Range test](rate-{part}.png)\n"
    )


# --- Main ---------------------------------------------------------------------------------------


def recorded(settings: Settings, backend: str) -> dict[str, Any]:
    """What the result depends on."""
    values = dataclasses.asdict(settings) | {"backend": backend}
    for name in ("output", "resume", "checkpoint_every"):
        del values[name]
    values["text"] = None if settings.text is None else str(settings.text)
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    settings = tyro.cli(Settings, args=arguments, prog=f"python -m recipes.{RECIPE}")
    start = time.perf_counter()
    try:  # all that can be wrong with what the user gave
        check(settings)
        backend = harness.choose_backend(settings.backend)
        text = load_text(settings.text, settings.length, settings.text_batch)
        digits_batches(images.load("digits"), settings, seed=0)
        folder = harness.open_run(
            RECIPE, recorded(settings, backend), output=settings.output, resume=settings.resume
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if folder.report.exists():
        print(f"This run is finished: {folder.report}")
        return 0
    schedules, clips = with_baselines(settings)
    count = (len(schedules) + len(clips)) * settings.seeds
    print(f"{count} fits, {backend}; writing {folder.path}", flush=True)
    try:
        if schedules:
            run_digits(schedules, settings, folder)
        if clips:
            run_text(clips, text, settings, folder)
    except KeyboardInterrupt:
        print("\nStopped. The same command with --resume goes on.", file=sys.stderr)
        return 130
    shutil.rmtree(folder.path / "backups", ignore_errors=True)  # empty by now
    print(f"\n{write_report(folder, settings, text, backend)}")
    print(f"Report: {folder.report}  ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
