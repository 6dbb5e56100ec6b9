"""Resume an interrupted training so that it ends as if it had not been interrupted."""

import os
import pathlib
from typing import Any

import keras

from kattn import backend
from kattn.arguments import check_integers, error
from kattn.callbacks.backup import files, training_state
from kattn.callbacks.backup.origin import differences, origin
from kattn.callbacks.backup.step_skipper import StepSkipper
from kattn.callbacks.update.values import copies


class ExactResume(keras.callbacks.Callback):
    """Save the whole state of a training, and resume from it when the script is started again.

    The resumed training ends with the same bytes as one without the interruption: weights,
    optimizer, metrics, seeds, history, states of callbacks, and the order of the data. In the epoch
    in which it was interrupted, the steps that had been done are read again and skipped, which
    costs the reading of their data. A training that had ended trains no more and has its final
    state again; with more `epochs` it goes on.

    This callback must be the last one in the list of callbacks of `fit`, so that what it restores
    is not changed afterwards. Each `fit` needs a directory of its own. A file of a backup is either
    complete or not there, whenever the process is killed.

    The result is exact for arrays, shuffled or not; for `EpochShuffled`, which is the best choice;
    and for a `PyDataset` whose batches depend on the index only. On TensorFlow arrays need
    `keras.utils.set_random_seed`, after which they have the same order in each epoch, and a
    `PyDataset` needs `fit(shuffle=False)`. The callback cannot check the following; please make
    sure of it:

    - No other callback keeps state unless it is listed in `callbacks`. All callbacks see the
      skipped steps, with empty logs.
    - The order of the data is not drawn from a generator of its own. Not restored are Python
      generators, a shuffled `tf.data` or `DataLoader`, a `PyDataset` with several workers, and
      `steps_per_epoch`.
    - Random numbers come from seeds or from a `SeedGenerator` of the model, or from the global
      generators of Python, NumPy and PyTorch, which are restored. The global generators of
      TensorFlow, and what `tf.random` draws, are not restored.

    Args:
        directory: Directory for these backups and nothing else. It is made if it does not exist.
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
        if not isinstance(directory, (str, os.PathLike)):
            raise error("`directory` must be a path", directory=directory)
        self.directory = pathlib.Path(directory)
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

    def set_params(self, params):
        # Keras hands the same dict to each callback in turn.
        self._late = [c for c in self.callbacks if c.params is not params]
        super().set_params(params)

    def on_train_begin(self, logs=None):
        model = self.model
        self._check_fit(model)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._optimizer_size = len(model.optimizer.variables)
        self._steps_per_execution = getattr(model, "steps_per_execution", 1)
        self._epoch, self.resumed_from, self._backup, self._skipper = None, None, None, None
        backups = files.paths(self.directory)
        if backups:
            state = files.read(backups[-1])
            self._check_origin(backups[-1], state)
            self._backup = state
            self._restore()
            training_state.set_random_state(state["random"])
            model._initial_epoch = state["epoch"]
            if state["stop_training"] and state["step"] == 0:
                model._initial_epoch = max(state["epoch"], self.params["epochs"])
        files.remove_unfinished(self.directory)

    def on_epoch_begin(self, epoch, logs=None):
        state = self._backup
        if self._epoch is None:
            self.model._initial_epoch = None  # fit has read it
            self._check_last(self.model)
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
                self._skipper = StepSkipper(self.model, self._steps_per_execution)
        if self.data is not None:
            self.data.set_epoch(epoch)
        self._epoch, self._random_at_epoch = epoch, training_state.random_state()

    def on_train_batch_begin(self, batch, logs=None):
        # Not at the end of a batch, which would keep Keras from running ahead of the device.
        if self._backup is not None:
            if batch < self._backup["step"]:
                self._skipper.skips_next = True
            else:
                self._go_on()
        elif batch // self.every > (batch - self._steps_per_execution) // self.every and batch > 0:
            self._save(self._epoch, batch, self._history())

    def on_epoch_end(self, epoch, logs=None):
        if self._backup is not None:
            raise error(
                "The data must have as many steps as when the backup was made",
                epoch=epoch,
                step_of_backup=self._backup["step"],
            )
        self._save(epoch + 1, 0, self._history(epoch, logs))

    def on_train_end(self, logs=None):
        if self._epoch is None:
            self.model._initial_epoch = None
        if self._backup is not None:  # there was nothing left to train
            self._set_history()
            metrics = self.model.metrics_variables
            if len(metrics) < len(self._backup["variables"]["metrics"]) and self.data is not None:
                training_state.build_metrics(self.model, self.data[0])
            if len(self.model.metrics_variables) == len(self._backup["variables"]["metrics"]):
                self._assign("metrics")
            self._has_resumed()

    def _check_fit(self, model):
        _check_model(model)
        for callback in self.callbacks:
            if callback.params is not self.params:
                raise error(
                    "`callbacks` must also be in the list of callbacks of fit",
                    callback=type(callback).__name__,
                )
        if self._late:
            raise error(
                "ExactResume must be the last of the callbacks of fit, so that what it restores is "
                "not changed afterwards",
                after_it=[type(c).__name__ for c in self._late],
            )
        for owner in training_state.rule_owners(model.optimizer):
            if hasattr(owner, "get_state") and owner not in self.callbacks:
                raise error(
                    f"`callbacks` must have {type(owner).__name__}, which keeps state",
                    callbacks=[type(c).__name__ for c in self.callbacks],
                )
        self._check_data()

    def _check_last(self, model):
        size = len(model.optimizer.variables)
        if size != self._optimizer_size:
            raise error(
                "ExactResume must be the last of the callbacks of fit; a later one has added "
                "variables to the optimizer",
                before=self._optimizer_size,
                now=size,
            )

    def _check_data(self):
        steps = self.params["steps"]
        if hasattr(self.data, "__len__") and steps != len(self.data):
            raise error(
                "`data` must be what fit reads, all of it in each epoch, without steps_per_epoch",
                batches=len(self.data),
                steps=steps,
            )
        needs_seed = self.data is None and keras.backend.backend() == "tensorflow"
        if needs_seed and backend.shuffling_seed() is None:
            raise error(
                "TensorFlow must have a seed, or the order in which it shuffles cannot be drawn "
                "again: call keras.utils.set_random_seed, or use EpochShuffled",
                data=None,
                seed=None,
            )

    def _check_origin(self, path, state):
        different = differences(state["origin"], self._origin())
        if different:
            raise error(
                f"The backup must be of the same training, but {different}. It is left as it is",
                file=str(path),
            )
        epochs, ended = self.params["epochs"], state["epoch"]
        if (ended, state["step"]) > (epochs, 0):
            raise error(
                "`epochs` must not be fewer than the backup has, which is left as it is",
                file=str(path),
                epochs=epochs,
                ended=ended,
                step=state["step"],
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
            "stop_training": bool(model.stop_training),
            "callbacks": [training_state.state_of(callback) for callback in self.callbacks],
            "random_at_epoch": self._random_at_epoch,
            "random": training_state.random_state(),
        }
        files.write(self.directory, epoch, step, state, keep=self.keep)

    def _go_on(self):
        """Restore the state again after the last skipped step, as others may have changed it."""
        self._skipper.remove()
        state, model = self._backup, self.model
        if len(model.metrics_variables) < len(state["variables"]["metrics"]):
            training_state.build_metrics(model, self._skipper.batch)
        self._restore()
        self._assign("metrics")
        self._set_history()
        model.stop_training = state["stop_training"]
        training_state.set_random_state(state["random"])
        self._has_resumed()

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


def _check_model(model):
    if not model.built:
        raise error(
            "The model must be built before fit: give it an Input, or call it on a batch",
            model=model.name,
            built=False,
        )
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if replicas > 1:
        raise error(
            "The model must be on one replica: under tf.distribute each replica has values of its "
            "own, which are not saved",
            num_replicas_in_sync=replicas,
        )
