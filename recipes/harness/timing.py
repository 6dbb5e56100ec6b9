"""Times that can be compared: everything is measured in turns after a warm-up."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def measure_in_turns(
    cases: Mapping[str, Callable[[], float]], *, turns: int = 5, warm_up: int = 1
) -> dict[str, float]:
    """Median of what each case returns, the cases being called in turns after a warm-up."""
    for case in cases.values():
        for _ in range(warm_up):
            case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(turns):
        for name, case in cases.items():
            times[name].append(case())
    return {name: statistics.median(values) for name, values in times.items()}


def measure_steps(
    models: Mapping[str, Any], batches: Mapping[str, tuple[Any, ...]], *, steps: int = 10
) -> dict[str, float]:
    """Seconds of one training step of each compiled model, measured in turns.

    Args:
        models: The models by name. They are trained on, so measure last.
        batches: For each model what `fit` takes as one batch, for example `(x, y)`.
        steps: Number of steps in each turn.

    Returns:
        The median over five turns, by name.
    """
    import keras

    def seconds_per_step(model: Any, batch: tuple[Any, ...]) -> float:
        stamps: list[float] = []

        def stamp(*_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

        # When the epoch ends its metrics have been read, so that every step is done.
        stamping = keras.callbacks.LambdaCallback(on_train_batch_begin=stamp, on_epoch_end=stamp)
        same = (batch for _ in range(steps))
        model.fit(same, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[stamping])
        return (stamps[-1] - stamps[0]) / steps

    cases = {
        name: functools.partial(seconds_per_step, model, batches[name])
        for name, model in models.items()
    }
    return measure_in_turns(cases, turns=5)
