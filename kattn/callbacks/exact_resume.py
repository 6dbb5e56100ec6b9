"""Resume an interrupted training so that it ends as if it had not been interrupted."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kattn.arguments import check_integers, error, local_path
from kattn.callbacks.backup import files, fit_checks, holdings, training_state
from kattn.callbacks.backup.origin import origin
from kattn.callbacks.backup.step_skipper import StepSkipper
from kattn.callbacks.update import interruption
from kattn.callbacks.update.values import copies


class ExactResume(keras.callbacks.Callback):
    """Save the whole state of a training, and resume from it when the script is started again.

    The resumed training ends with the same bytes as one without the interruption: weights,
    optimizers, metrics, seeds, history, states of callbacks, and the order of the data; optimizers
    that the model holds besides `model.optimizer` are among them. In the epoch in which it was
    interrupted, the steps that had been done are read again and skipped, which costs the reading of
    their data.

    How a training came to an end decides what happens when its script is started again:

    - It did all its epochs, or was stopped at the end of one, as by `EarlyStopping`: it trains no
      more and has its final state again. With more `epochs` it goes on.
    - It was stopped within an epoch, as `model.stop_training` was set: it goes on with the next
      step of that epoch.
    - It was stopped by a fault: there is no backup of the state with the fault, and training goes
      on from the one before. A fault is an exception, a killed process, or a loss that is not
      finite when training is stopped, as by `TerminateOnNaN`.

    This callback must be the last one in the list of callbacks of `fit`, so that what it restores
    is not changed afterwards. Each `fit` needs a directory of its own. A file of a backup is either
    complete or not there, whenever the process is killed.

    The result is exact for arrays, shuffled or not; for `EpochShuffled`, which is the best choice;
    and for a `PyDataset` whose batches depend on the index only. On TensorFlow arrays need
    `keras.utils.set_random_seed`, after which they have the same order in each epoch, and a
    `PyDataset` needs `fit(shuffle=False)`. The callback cannot check the following; please make
    sure of it:

    - No other callback keeps state unless it is listed in `callbacks`. All callbacks see the
      skipped steps; the logs of each are those of the step before the backup.
    - The order of the data is drawn from the global generators of Python, NumPy or PyTorch, as by
      PyTorch's `DataLoader(shuffle=True)`, and not from a generator of its own. Not restored are
      Python generators, a shuffled `tf.data`, a `PyDataset` with several workers, and
      `steps_per_epoch`.
    - Random numbers come from seeds or from a `SeedGenerator` of the model, or from the global
      generators of Python, NumPy and PyTorch, which are restored. The global generators of
      TensorFlow, and what `tf.random` draws, are not restored.

    Args:
        directory: Directory of this machine for these backups and nothing else. It is made if it
            does not exist; `~` is the user's folder.
        every: Number of steps between backups, counted in each epoch, an integer >= 1. With
            `steps_per_execution` a backup waits for the end of an execution. There is also a backup
            after each epoch. Each backup copies the state to the host and waits for the disk.
        keep: Number of backups to keep, an integer >= 1.
        callbacks: Other callbacks of this `fit` whose state is saved: those of kattn, any that have
            `get_state()` and `set_state(state)`, and Keras's EarlyStopping, ReduceLROnPlateau and
            ModelCheckpoint (with `save_freq="epoch"`). A state consists of dicts, lists, tuples,
            NumPy arrays, numbers, strings and None.
        data: The data that `fit` reads, if they have `set_epoch(epoch)` as `EpochShuffled` has.
            None otherwise.

    Attributes:
        resumed_from: `(epoch, step)` from which the last `fit` went on; None if it started from the
            beginning.
        is_skipping: Whether training has not come to the step of the backup. At the end of a batch
            it says whether the batch was skipped.

    Raises:
        ValueError: If an argument is out of range. When training begins, if this is not the last of
            the callbacks; if the newest backup is damaged, or belongs to another model, optimizer,
            backend or data (it is left as it is); or if the training could not be resumed later.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.zeros((100, 3)), np.zeros((100, 1))
        >>> data = kattn.data.EpochShuffled((x, y), batch_size=32)
        >>> clipping = kattn.callbacks.GradientClipping("autoclip")
        >>> resume = kattn.callbacks.ExactResume("backups", callbacks=[clipping], data=data)
        >>> fit = {"shuffle": False, "epochs": 20, "callbacks": [clipping, resume], "verbose": 0}
        >>> history = model.fit(data, **fit)  # killed and started again, it goes on
    """

    def __init__(self, directory, *, every=100, keep=2, callbacks=(), data=None):
        super().__init__()
        check_integers(1, every=every, keep=keep)
        self.directory = local_path(directory=directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise error("`directory` must not be a file", directory=str(directory))
        if data is not None and not callable(getattr(data, "set_epoch", None)):
            raise error(
                "`data` must have set_epoch(epoch), as EpochShuffled has; leave it out for other "
                "data",
                data=type(data).__name__,
            )
        self.every, self.keep, self.data = every, keep, data
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            training_state.check_callback(callback)
        self.resumed_from = None
        self._late = []  # callbacks that come after this one
        self._backup: Any = None  # the state to go on from, until training has gone on
        self._skipper: Any = None
        self._batch = 0  # the last step that has begun
        self._is_stop_saved = False

    @property
    def is_skipping(self):
        """See the class."""
        return self._backup is not None

    def set_params(self, params):
        # Keras hands the same dict to each callback in turn.
        self._late = [c for c in self.callbacks if c.params is not params]
        super().set_params(params)

    def on_train_begin(self, logs=None):
        model = self.model
        fit_checks.check_model(model)
        fit_checks.check_callbacks(model, self.callbacks, self.params, self._late)
        fit_checks.check_data(self.data, self.params["steps"])
        interruption.watch(self)
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._steps_per_execution = getattr(model, "steps_per_execution", 1)
        self._epoch, self.resumed_from, self._backup, self._skipper = None, None, None, None
        backups = files.paths(self.directory)
        if backups:
            state = files.read(backups[-1])
            training_state.build_optimizers(model, state["trained_weights"])
            epochs = self.params["epochs"]
            fit_checks.check_backup(backups[-1], state, self._origin(), epochs)
            self._backup = state
            self._restore()
            training_state.set_random_state(state["random"])
            model._initial_epoch = state["epoch"]
            if state["stop_training"] and epochs <= state["epochs"]:
                model._initial_epoch = max(state["epoch"], epochs)
        self._optimizer_size = self._count_of_optimizer_variables()
        files.remove_unfinished(self.directory)

    def on_epoch_begin(self, epoch, logs=None):
        state = self._backup
        if self._epoch is None:
            self.model._initial_epoch = None  # fit has read it
            self._check_last()
        if state is not None:
            if epoch != state["epoch"]:
                raise error(
                    "`initial_epoch` must be left out when training is to go on from a backup",
                    initial_epoch=epoch,
                    epoch_of_backup=state["epoch"],
                )
            self._set_history()
            if state["step"] == 0:
                self._has_resumed()
            else:
                # The order of the data is drawn from it.
                training_state.set_random_state(state["random_at_epoch"])
                self._skipper = StepSkipper(
                    self.model, self._steps_per_execution, state["logs"], self._build_metrics
                )
        if self.data is not None:
            self.data.set_epoch(epoch)
        self._epoch, self._random_at_epoch = epoch, training_state.random_state()
        self._is_stop_saved = False

    def on_train_batch_begin(self, batch, logs=None):
        # Not at the end of a batch, which would keep Keras from running ahead of the device.
        self._batch = batch
        if self._backup is not None:
            if batch < self._backup["step"]:
                self._skipper.skips_next = True
            else:
                self._go_on()
        elif batch // self.every > (batch - self._steps_per_execution) // self.every and batch > 0:
            self._save(self._epoch, batch, self._history())

    def on_epoch_end(self, epoch, logs=None):
        if self._backup is not None:
            if self.model.stop_training:  # in a skipped step: the backup is the newest state
                return
            raise error(
                "The data must have as many steps as when the backup was made",
                epoch=epoch,
                step_of_backup=self._backup["step"],
            )
        if self._is_within_epoch():
            self._save_stop()
        elif not self.model.stop_training or _is_finite(logs):
            self._save(epoch + 1, 0, self._history(epoch, logs))

    def on_test_begin(self, logs=None):
        # Validation is about to reset the metrics of a training that was stopped.
        if self._epoch is not None and self._backup is None and self._is_within_epoch():
            self._save_stop()

    def _is_within_epoch(self):
        """Whether training has been stopped before the last step of the epoch."""
        steps = self.params["steps"]
        done = self._batch + self._steps_per_execution
        return self.model.stop_training and steps is not None and done < steps

    def _save_stop(self):
        """Save the state after the last step, unless it is at fault."""
        if not self._is_stop_saved and _is_finite(self._logs()):
            self._save(self._epoch, self._batch + self._steps_per_execution, self._history())
        self._is_stop_saved = True

    def _logs(self):
        """The metrics as numbers: the logs of the last step."""
        values = self.model.get_metrics_result().items()
        arrays = {name: np.array(ops.convert_to_numpy(value)) for name, value in values}
        return {name: array if array.ndim else array.item() for name, array in arrays.items()}

    def on_train_end(self, logs=None):
        if self._epoch is None:
            self.model._initial_epoch = None
        if self._backup is not None:  # there was nothing left to train
            self._set_history()
            if self.data is not None:
                self._build_metrics(self.data[0])
            if len(self.model.metrics_variables) == len(self._backup["variables"]["metrics"]):
                self._assign("metrics")
            self._has_resumed()
        self._epoch = None
        self.release()

    def release(self):
        """Leave the model as it was. It is called at the end of `fit`, however that ends."""
        interruption.end(self)
        if self._epoch is None and self._backup is not None:
            self.model._initial_epoch = None  # which `fit` has not come to read
        if self._skipper is not None:
            self._skipper.remove()
        self._epoch = self._backup = self._skipper = None

    def _count_of_optimizer_variables(self):
        return len(holdings.optimizer_variables(self.model))

    def _check_last(self):
        size = self._count_of_optimizer_variables()
        if size != self._optimizer_size:
            raise error(
                "ExactResume must be the last of the callbacks of fit; a later one has added "
                "variables to the optimizer",
                before=self._optimizer_size,
                now=size,
            )

    def _origin(self):
        steps = self.params["steps"]
        return origin(self.model, self.callbacks, self.data, steps)

    def _history(self, epoch=None, logs=None):
        """The content of History; at the end of an epoch, as it will be afterwards."""
        history = self.model.history
        epochs, columns = list(history.epoch), {k: list(v) for k, v in history.history.items()}
        if epoch is not None and epochs[-1:] != [epoch]:
            epochs.append(epoch)
            for name, value in (logs or {}).items():
                columns.setdefault(name, []).append(value)
        return {"epoch": epochs, "history": columns}

    def _save(self, epoch, step, history):
        model = self.model
        groups = training_state.variables(model)
        state = {
            "origin": self._origin(),
            "epoch": epoch,
            "step": step,
            "variables": {name: copies(group) for name, group in groups.items()},
            "history": history,
            "stop_training": bool(model.stop_training) and step == 0,
            "epochs": self.params["epochs"],
            "logs": self._logs() if step else {},
            "trained_weights": training_state.trained_weights(model),
            "callbacks": [training_state.state_of(callback) for callback in self.callbacks],
            "random_at_epoch": self._random_at_epoch,
            "random": training_state.random_state(),
        }
        files.write(self.directory, epoch, step, state, keep=self.keep)

    def _go_on(self):
        """Restore the state again after the last skipped step, as others may have changed it."""
        self._skipper.remove()
        state = self._backup
        self._restore()
        self._assign("metrics")
        self._set_history()
        training_state.set_random_state(state["random"])
        self._has_resumed()

    def _build_metrics(self, batch):
        """Have the metrics made that no step has made, as all were skipped."""
        saved = self._backup["variables"]["metrics"]
        if len(self._model.metrics_variables) < len(saved):
            training_state.build_metrics(self._model, batch)

    def _restore(self):
        """Restore all but what Keras resets before an epoch."""
        self._assign("model")
        self._assign("optimizer")
        for callback, state in zip(self.callbacks, self._backup["callbacks"], strict=True):
            training_state.set_state(callback, state)

    def _assign(self, name):
        group = training_state.variables(self.model)[name]
        training_state.set_variables(name, group, self._backup["variables"][name])

    def _set_history(self):
        history, saved = self.model.history, self._backup["history"]
        history.epoch = list(saved["epoch"])
        history.history = {name: list(values) for name, values in saved["history"].items()}

    def _has_resumed(self):
        self.resumed_from = (self._backup["epoch"], self._backup["step"])
        self._backup = self._skipper = None


def _is_finite(logs):
    return math.isfinite(float((logs or {}).get("loss", 0.0)))
