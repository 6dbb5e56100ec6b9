"""Callbacks that watch a fit. They need Keras, so import this only once the backend is chosen."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from recipes.harness.progress import Progress


class Watching(keras.callbacks.Callback):
    """Shows how far the training is, times epochs, and validates at the end of each.

    Args:
        label: Name of the fit, shown with its progress.
        epochs: Number of epochs of the fit.
        steps: Number of steps in one epoch.
        validate: Function of the model that returns results by name, or None. The results are
            added to the logs of the epoch, their names beginning with "val_".
    """

    def __init__(
        self,
        label: str,
        epochs: int,
        steps: int,
        validate: Callable[[Any], Mapping[str, float]] | None = None,
    ):
        super().__init__()
        self.label, self.epochs, self.steps, self.validate = label, epochs, steps, validate
        self.progress: Progress | None = None
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.progress is None:
            self.progress = Progress(self.label, self.epochs, self.steps, first_epoch=epoch)
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.progress is not None:
            self.progress.step()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["seconds"] = time.perf_counter() - self._start
        if self.validate is None or self.progress is None:
            return
        validated = self.validate(self.model)
        logs |= {f"val_{name}": value for name, value in validated.items()}
        shown = [*(name for name in validated if name in logs), *(f"val_{n}" for n in validated)]
        self.progress.epoch(epoch + 1, {name: logs[name] for name in shown})

    def on_train_end(self, logs: Any = None) -> None:
        if self.progress is not None:
            self.progress.close()


class BestWeights(keras.callbacks.Callback):
    """Ends a fit with the weights of the epoch that had the lowest validation loss.

    Args:
        path: Name of a file for these weights, which ends with ".weights.h5".
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.best = path, math.inf

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.model.save_weights(self.path, overwrite=True)

    def on_train_end(self, logs: Any = None) -> None:
        if self.best < math.inf:
            self.model.load_weights(self.path)

    def get_state(self) -> dict[str, Any]:
        """Give what a training that goes on needs, beside the file."""
        return {"best": self.best}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a training that was stopped."""
        self.best = state["best"]


class StepLosses(keras.callbacks.Callback):
    """Keeps the loss of each step of the last epoch in `losses`."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.losses = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if logs:  # otherwise ExactResume has skipped the step
            # The logs hold the mean of the epoch so far, and batches are of one size.
            self.losses.append(logs["loss"] * (batch + 1) - math.fsum(self.losses))

    def get_state(self) -> dict[str, Any]:
        """Give what a training that goes on needs."""
        return {"losses": list(self.losses)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a training that was stopped."""
        self.losses = list(state["losses"])
