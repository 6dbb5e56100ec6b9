"""What does each callback add to a training step?

Task    One step of `fit` with Adam: `small`, an MLP of 6 weights (batch 32), and `large`, 25
        Transformer blocks of 300 weights in all (batch 8, T=64, C=64, N=4).
Sides   The model with a callback of kattn, and beside it an equal one with none. For comparison
        also Keras's own `global_clipnorm`. `together` is clipping by the global norm, a schedule
        and the monitor.
Method  The two in turns in one process, each trained for some steps before; the time of a step is
        that of a whole `fit` of `--steps` batches, from its first batch to the end of its epoch.
        Medians over the turns, and the median of the turns' ratios.
Run     python -m recipes.benchmarks.callbacks --backend jax
        python -m recipes.benchmarks.callbacks --backend jax --only "large.*together"
"""

import dataclasses
import functools
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from recipes import harness
from recipes.benchmarks import records, turns

MODELS = {"small": "6 weights, batch 32", "large": "300 weights, batch 8"}
BLOCKS, WIDTH, STEPS, BATCH = 25, 64, 64, 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time kattn's callbacks beside a training without them."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 5  # how often each side is timed
    steps: int = 20  # batches of a fit
    json: Path | None = None  # a file for the records


def build(size: str, **options: Any) -> Any:
    """A compiled model, of the same first weights each time."""
    import keras

    from kattn.layers import SelfAttention

    keras.utils.set_random_seed(0)
    layers = keras.layers
    if size == "small":
        inputs = x = keras.Input((16,))
        for _ in range(2):
            x = layers.Dense(64, "relu")(x)
    else:
        inputs = x = keras.Input((STEPS, WIDTH))
        for _ in range(BLOCKS):
            x = layers.Add()([x, SelfAttention(4, causal=True)(layers.LayerNormalization()(x))])
            hidden = layers.Dense(2 * WIDTH, "gelu")(layers.LayerNormalization()(x))
            x = layers.Add()([x, layers.Dense(WIDTH)(hidden)])
    model = keras.Model(inputs, layers.Dense(1)(x) if size == "small" else x)
    model.compile(keras.optimizers.Adam(1e-4, **options), "mse")
    return model


def data(size: str, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Inputs, targets and batch size of `steps` batches."""
    rng = np.random.default_rng(0)
    batch, *shapes = (
        (32, (16,), (1,)) if size == "small" else (BATCH, (STEPS, WIDTH), (STEPS, WIDTH))
    )
    x, y = (rng.normal(size=(steps * batch, *shape)).astype("float32") for shape in shapes)
    return x, y, batch


def callbacks() -> dict[str, Callable[[], list[Any]]]:
    """By name, what makes the callbacks of a side."""
    from kattn import callbacks as kattn
    from kattn import schedules

    schedule = schedules.WarmUp(schedules.Cosine(1e-4, 0.0, 100_000), 100)
    folder = Path(tempfile.mkdtemp())

    def branching(step: int) -> float:
        return 1e-4 if step < 9 else 1e-5

    found: dict[str, Callable[[], list[Any]]] = {
        "LearningRate": lambda: [kattn.LearningRate(schedule)],
        "LearningRate, not traced": lambda: [kattn.LearningRate(branching)],
        "HyperparameterSchedule": lambda: [kattn.HyperparameterSchedule("beta_1", schedule)],
        "WarmupThenPlateau": lambda: [kattn.WarmupThenPlateau(1e-4, 100, monitor="loss")],
    }
    for mode in ("value", "norm", "global_norm", "agc", "autoclip", "zclip"):
        found[f"GradientClipping {mode}"] = functools.partial(_clipping, mode)
    found |= {
        "GradientMonitor": lambda: [kattn.GradientMonitor()],
        "SpikeGuard": lambda: [kattn.SpikeGuard()],
        "LayerwiseLearningRates": lambda: [kattn.LayerwiseLearningRates(decay=0.9)],
        "GradualUnfreezing": lambda: [kattn.GradualUnfreezing({"dense": 0})],
        "ExponentialMovingAverage": lambda: [kattn.ExponentialMovingAverage(at_end="last")],
        "ExactResume": lambda: [kattn.ExactResume(folder / str(time.time()), every=10**6, keep=1)],
        "together": lambda: [
            kattn.GradientClipping(),
            kattn.LearningRate(schedule),
            kattn.GradientMonitor(),
        ],
    }
    return found


def _clipping(mode: str) -> list[Any]:
    from kattn.callbacks import GradientClipping

    return [GradientClipping(mode)]


def timed(model: Any, size: str, steps: int, make: Callable[[], list[Any]]) -> Callable[[], float]:
    """A function that trains for `steps` batches and returns the milliseconds of one."""
    import keras

    x, y, batch = data(size, steps)
    stamps: list[float] = []
    first = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda *_, **__: stamps.append(time.perf_counter())
    )
    # It reads the metrics, and so waits for all that was computed.
    last = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_, **__: stamps.append(time.perf_counter())
    )

    def run() -> float:
        stamps.clear()
        made = make()  # equal ones are not traced again
        options = {"batch_size": batch, "verbose": 0, "shuffle": False}
        model.fit(x, y, callbacks=[first, *made, last], **options)
        return 1e3 * (stamps[-1] - stamps[0]) / steps

    return run


def measure(
    size: str, name: str, peer: Callable[[], float], settings: Settings, backend: str
) -> dict[str, Any]:
    """A record: medians in ms over turns, and the median ratio to `peer`, a training of `timed`."""
    if name == "Keras's global_clipnorm":
        side = timed(build(size, global_clipnorm=1.0), size, settings.steps, list)
    else:
        side = timed(build(size), size, settings.steps, callbacks()[name])
    runs = {"kattn": side, "peer": peer}
    for run in runs.values():
        run()
    times = turns.in_turns(runs, settings.turns)
    return {
        "backend": backend,
        "case": f"{size}: {MODELS[size]}, {name}",
        "peer": "no callback",
        **turns.compared(*times.values(), digits=3),
        "kattn_mib": None,
        "peer_mib": None,
    }


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    columns = ("case", "kattn_ms", "peer_ms", "ratio")
    records.print_head(columns)
    found = []
    for size in MODELS:
        peer = timed(build(size), size, settings.steps, list)
        for name in ("Keras's global_clipnorm", *callbacks()):
            if re.search(settings.only, f"{size}: {MODELS[size]}, {name}"):
                record = measure(size, name, peer, settings, backend)
                found.append(record)
                records.print_row(record, columns)
    if settings.json:
        records.write(settings.json, found, backend)


if __name__ == "__main__":
    main()
