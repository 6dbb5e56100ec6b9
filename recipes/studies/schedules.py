"""Which schedule of the learning rate? All of them on one small task, with an equal budget.

Task    Classify digits with an MLP under each schedule of the learning rate.
Data    digits (in scikit-learn): 1,200 + 597 images of 8 x 8. No network.
Result  3 seeds, on each of TensorFlow, JAX and PyTorch: mean test losses of 0.28 (Smith's
        one-cycle) to 0.35 (exp_range), 0.30 to 0.32 with a constant rate. Of 17 differences to the
        constant rate none is beyond chance on JAX and PyTorch, and one is on TensorFlow, which is
        what chance alone makes of so many. Three seeds and 597 images cannot tell these schedules
        apart.
Cost    With the study of clipping: 4.1 (JAX) to 4.5 minutes (PyTorch) on two cores of an AMD EPYC
        that others used, too.
Run     python -m recipes.studies.schedules
        python -m recipes.studies.schedules --schedule cosine one_cycle --lr-find
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from recipes import harness
from recipes.data import images
from recipes.harness.figures import BLUE, RED

RECIPE = "studies.schedules"
CONSTANT = "constant"
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


@dataclass(frozen=True)
class Settings(harness.RunFlags):
    """Compare schedules of the learning rate on digits."""

    schedule: tuple[str, ...] = tuple(SCHEDULES)  # names of those to compare with a constant rate
    lr_find: bool = False  # find the highest learning rate by a range test first

    learning_rate: float = 3e-3  # highest rate of every schedule; AdamW
    weight_decay: float = 0.01  # of AdamW; biases do not decay
    epochs: int = 15  # passes over the training images
    batch_size: int = 64  # images in one training step
    hidden: int = 64  # width of the two hidden layers

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        for name in self.schedule:
            arguments.check_choice(SCHEDULES, schedule=name)
        if not self.schedule:
            raise arguments.error(
                "`schedule` must name at least one schedule", schedule=self.schedule
            )
        arguments.check_integers(
            1, epochs=self.epochs, batch_size=self.batch_size, hidden=self.hidden
        )

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of the schedules to train with, the baseline first."""
        return tuple(name for name in SCHEDULES if name in {CONSTANT, *self.schedule})


def make_schedule(name: str, peak: float, steps: int) -> tuple[Any, Any]:
    """A schedule of `steps` updates that is never above `peak`; that of beta_1, or None."""
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
        # The scale undoes the width, so any width serves.
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
    """The callbacks that apply a schedule."""
    from kattn.callbacks import HyperparameterSchedule, LearningRate

    schedule, momentum = make_schedule(name, peak, steps)
    callbacks = [LearningRate(schedule)]
    if momentum is not None:
        callbacks.append(HyperparameterSchedule("beta_1", momentum))
    return callbacks


def flat(x: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1], `(count, H W C)` float32."""
    return x.reshape(len(x), -1).astype("float32") / 127.5 - 1


def batches(data: images.ImageData, settings: Settings, seed: int) -> Any:
    """Training images in an order that depends on seed and epoch."""
    from kattn.data import EpochShuffled

    return EpochShuffled(
        (flat(data.x_train), data.y_train),
        batch_size=settings.batch_size,
        seed=seed,
        drop_remainder=True,
    )


def build(data: images.ImageData, settings: Settings, seed: int) -> Any:
    """A compiled MLP."""
    import keras

    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((math.prod(data.image_shape),))
    for number in (1, 2):
        x = keras.layers.Dense(settings.hidden, "relu", name=f"hidden{number}")(x)
    model = keras.Model(inputs, keras.layers.Dense(len(data.classes), name="head")(x))
    optimizer = harness.adamw(settings.learning_rate, settings.weight_decay)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def train(data: images.ImageData, settings: Settings, folder: harness.RunFolder) -> None:
    """Fit what has no result yet."""
    steps = len(batches(data, settings, 0)) * settings.epochs
    peak = settings.learning_rate
    if settings.lr_find:
        model, first = build(data, settings, 0), batches(data, settings, 0)
        peak = harness.find_rate(model, first, folder, low=1e-5)
    weights = [build(data, settings, seed).get_weights() for seed in range(settings.seeds)]
    x, y = flat(data.x_test), data.y_test
    compiled, restartable = None, None
    for kind, seed, name in harness.unfinished(folder, settings.compared, settings.seeds):
        if restartable is None or kind != compiled:  # a schedule is compiled into the step
            compiled, restartable = kind, harness.Restartable(build(data, settings, 0))
        model = restartable.restart(weights[seed])
        epochs = harness.fit(
            model,
            batches(data, settings, seed),
            schedule_callbacks(kind, peak, steps),
            folder,
            name=name,
            epochs=settings.epochs,
            every=settings.checkpoint_every,
        )
        test = model.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)
        test = {key: float(value) for key, value in test.items()}
        result = {"schedule": kind, "seed": seed, "peak": peak, "steps": steps}
        harness.finish(folder, name, {**result, "epochs": epochs, "test": test})


def schedules_figure(names: Sequence[str], peak: float, steps: int) -> Figure:
    """The rate of each schedule over the steps, and beta_1 where it has a schedule."""
    figure, axes = harness.panels(len(names), 6, 2.0, 1.5)
    t = np.arange(steps)
    for panel, name in zip(axes, names, strict=True):
        schedule, momentum = make_schedule(name, peak, steps)
        panel.plot(t, schedule(t), color=BLUE)
        panel.set_title(SCHEDULES[name], fontsize=8)
        if momentum is not None:
            twin = panel.twinx()
            twin.plot(t, momentum(t), color=RED, linewidth=0.8)
            twin.set_ylim(0.8, 1.0)
            twin.spines["top"].set_visible(False)
            twin.tick_params(labelsize=6, colors=RED)
    figure.supylabel("rate; red: beta_1", fontsize=8)
    figure.supxlabel("step", fontsize=8)
    return figure


def write_report(
    data: images.ImageData, settings: Settings, folder: harness.RunFolder, backend: str
) -> str:
    """Plots, and everything the run has to say in `report.md`; returns the verdict."""
    results = harness.read_results(folder, settings.compared, settings.seeds)
    losses = {kind: [run["test"]["loss"] for run in runs] for kind, runs in results.items()}
    percent = {k: [100 * run["test"]["accuracy"] for run in runs] for k, runs in results.items()}
    one = results[CONSTANT][0]
    schedules = folder.add_figure(
        "schedules.png",
        "The schedules",
        lambda: schedules_figure(list(results), one["peak"], one["steps"]),
    )
    others = {"test accuracy, %": percent}
    by_schedule = folder.add_figure(
        "results.png",
        "Results by schedule: one dot per seed, a bar at the mean",
        lambda: harness.results_figure(losses, SCHEDULES, CONSTANT, others, "test loss"),
    )
    between = harness.PairedDifference.between
    rows = [
        [
            SCHEDULES[kind],
            harness.with_spread([run["epochs"][-1]["loss"] for run in runs]),
            harness.with_spread(losses[kind]),
            "" if kind == CONSTANT else between(losses[kind], losses[CONSTANT]),
            harness.with_spread(percent[kind], 2),
        ]
        for kind, runs in results.items()
    ]
    header = ["Schedule", "Training loss", "Test loss", "Difference to constant", "Accuracy, %"]
    said = harness.clear_differences("Test loss on digits", CONSTANT, losses, SCHEDULES)
    notes = (
        f"Mean ± standard deviation over seeds ({settings.seeds}). The training loss is the mean "
        "of the last epoch. Differences of test loss are paired by seed, with the 95 % interval of "
        "Student's t; * marks an interval that leaves 0 out.",
        f"An MLP with two hidden layers of {settings.hidden}, AdamW, {one['steps']} updates of "
        f"{settings.batch_size} images, the same peak rate {one['peak']:.3g} for all. Runs of a "
        "seed start from the same weights and see the same images in the same order. Another peak "
        "rate, or a longer training, may give another order. A test loss may be high although few "
        "images are taken for others, where the model is too sure of these.",
        f"The test images ({len(data.x_test)}) were used once per run, after training.",
        harness.time_spent(results),
    )
    text = f"""# Schedules of the learning rate, on digits

{said}

{harness.table(header, rows)}

{harness.bullets(notes)}

{schedules}

{by_schedule}

{harness.rate_section(folder)}{harness.closing_sections(settings, backend)}"""
    folder.write_text("report.md", text)
    return said


def prepare(settings: Settings) -> harness.Job:
    """Read the digits, and compare the schedules on them."""
    data = images.load("digits")
    batches(data, settings, seed=0)  # so that too large a batch is refused at once

    def work(folder: harness.RunFolder, backend: str) -> str:
        train(data, settings, folder)
        return write_report(data, settings, folder, backend)

    return harness.Job(f"{len(settings.compared) * settings.seeds} fits", work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments), prepare)


if __name__ == "__main__":
    sys.exit(main())
