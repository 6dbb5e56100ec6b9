"""Fits that can be stopped at any moment: each leaves a result, or a backup to go on from."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.harness.progress import in_words
from recipes.harness.run_folder import RunFolder


def fit(
    model: Any,
    data: Any,
    callbacks: Sequence[Any],
    folder: RunFolder,
    *,
    name: str,
    epochs: int,
    every: int,
    label: str | None = None,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    keep: str = "last",
) -> list[dict[str, float]]:
    """Train a compiled model, from the last backup of this fit if there is one.

    Args:
        model: A compiled model.
        data: A `kattn.data.EpochShuffled`.
        callbacks: Callbacks of the training. Those with state are in the backups.
        folder: Folder of the run.
        name: Name of the fit, under which its backups are kept.
        epochs: Number of epochs.
        every: Number of steps between two backups.
        label: Shown with the progress. None shows the name.
        validate: Function of the model, called after each epoch, that returns results by name.
        keep: Which weights the model ends with: "last", or "best" for those of the epoch with the
            lowest validation loss.

    Returns:
        One dict for each epoch: its number from 1, loss, metrics, validation and seconds.
    """
    from kattn.callbacks import ExactResume
    from recipes.harness.watching import BestWeights, Watching

    watching = Watching(label or name, epochs, len(data), validate)
    best = [BestWeights(_best_weights(folder, name))] if keep == "best" else []
    backups = folder.path / "backups" / name
    resume = ExactResume(backups, every=every, keep=1, callbacks=[*callbacks, *best], data=data)
    # The best weights are chosen by what `watching` adds to the logs.
    ordered = [*callbacks, watching, *best, resume]
    history = model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=ordered)
    return [
        {"epoch": epoch + 1, **{key: values[i] for key, values in history.history.items()}}
        for i, epoch in enumerate(history.epoch)
    ]


def finish(folder: RunFolder, name: str, result: Mapping[str, Any]) -> None:
    """Write the result of a fit, which then needs no backup and is not run again."""
    folder.write_json(f"history/{name}.json", result)
    _remove_backups(folder, name)
    print(f"{name}: {in_words(result['test'])}", flush=True)


def _remove_backups(folder: RunFolder, name: str) -> None:
    backups = folder.path / "backups"
    shutil.rmtree(backups / name, ignore_errors=True)
    _best_weights(folder, name).unlink(missing_ok=True)
    if backups.is_dir() and not any(backups.iterdir()):
        backups.rmdir()


def _best_weights(folder: RunFolder, name: str) -> Path:
    return folder.path / "backups" / f"{name}.weights.h5"


def unfinished(
    folder: RunFolder, kinds: Sequence[str], seeds: int
) -> Iterator[tuple[str, int, str]]:
    """Kind, seed and name of each fit that has no result yet, all seeds of a kind together."""
    for kind in kinds:
        for seed in range(seeds):
            name = f"{kind}-seed{seed}"
            if (folder.path / f"history/{name}.json").is_file():
                _remove_backups(folder, name)  # a run may have been killed before it did
            else:
                yield kind, seed, name


def read_results(
    folder: RunFolder, kinds: Sequence[str], seeds: int
) -> dict[str, list[dict[str, Any]]]:
    """The results of all fits: by kind of model, then by seed."""
    return {
        kind: [folder.read_json(f"history/{kind}-seed{seed}.json") for seed in range(seeds)]
        for kind in kinds
    }


def adamw(learning_rate: float, weight_decay: float, **options: Any) -> Any:
    """AdamW, in which biases and the gains and offsets of normalisations do not decay."""
    import keras

    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


def predict(model: Any, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Predictions in float64. The last batch is filled up: a new shape means compiling anew."""
    parts = []
    for start in range(0, len(x), 64 * batch_size):
        part = x[start : start + 64 * batch_size]
        filled = np.resize(part, (-(-len(part) // batch_size) * batch_size, *part.shape[1:]))
        parts.append(model.predict(filled, batch_size=batch_size, verbose=0)[: len(part)])
    return np.concatenate(parts).astype("float64")


class Restartable:
    """A compiled model that fits again from the start, as compiling once more takes seconds."""

    def __init__(self, model: Any):
        import keras

        model.optimizer.build(model.trainable_variables)
        self.model = model
        self._optimizer = [
            np.array(keras.ops.convert_to_numpy(variable), copy=True)
            for variable in model.optimizer.variables
        ]

    def restart(self, weights: Sequence[np.ndarray]) -> Any:
        """The model with these weights, and with an optimizer that has seen nothing."""
        self.model.set_weights(weights)
        # Variables of callbacks come after these, and a new callback resets them itself.
        for variable, value in zip(self.model.optimizer.variables, self._optimizer, strict=False):
            variable.assign(value)
        return self.model
