"""A training that is killed at any moment ends as if it had not been."""

import os
import pathlib
from typing import Any

import keras

from kattn import backend
from kattn.callbacks import backup_files, training_state


class ExactResume(keras.callbacks.Callback):
    """Save the whole state of a training; the same script, started again, goes on from there.

    It ends in the same bytes as without the interruption: weights, optimizer, metrics, seeds,
    history, states of callbacks, order of the data. Span of the epoch that had been done are read
    again and skipped, which costs the reading of their data. A training that had ended trains
    nothing more, and has its end state again; with more `epochs` it goes on.

    It must be the last in the list of callbacks of `fit`, so that what it restores stays. Files
    appear whole or not at all. Each `fit` needs a directory of its own.

    Exact are arrays, shuffled or not; `EpochShuffled`, which is the best choice; and a `PyDataset`
    whose batches are functions of the index. On TensorFlow arrays need
    `keras.utils.set_random_seed`, after which their order is the same in each epoch, and a
    `PyDataset` needs `fit(shuffle=False)`. Nothing can know, and you must see to it yourself, that
    - no other callback keeps state: one that does belongs in `callbacks`. All callbacks see the
      skipped steps, with empty logs;
    - the order of data is not drawn anew: generators, and a shuffled `tf.data` or `DataLoader` with
      a generator of its own, are not restored, nor is a `PyDataset` with several workers, nor
      `steps_per_epoch`;
    - random numbers come from seeds or a `SeedGenerator` within the model: TensorFlow's global
      generators, and what `tf.random` draws, are not restored. Python's and NumPy's global
      generators are, and torch's.

    Args:
        directory: For nothing but these backups. It is made if need be.
        every: Span between backups, 1 or more, counted in each epoch; with `steps_per_execution`,
            backups wait for the end of an execution. Besides there is one after each epoch. Each
            copies the state to the host and waits for the disk.
        keep: How many backups to keep, 1 or more.
        callbacks: Other callbacks of this `fit`, whose state is saved: kattn's, any with
            `get_state()` and `set_state(state)`, and Keras's EarlyStopping, ReduceLROnPlateau and
            ModelCheckpoint (with `save_freq="epoch"`). A state consists of dicts, lists, tuples,
            NumPy arrays, numbers, strings and None.
        data: What `fit` reads, if it has `set_epoch(epoch)`, as `EpochShuffled`.

    Attributes:
        resumed_from: `(epoch, step)` at which the last `fit` went on, None if it began anew.

    Raises:
        ValueError: If an argument is out of its range. When training begins: if this is not the
            last of the callbacks; if the newest backup is damaged, or of another model, optimizer,
            backend or data (it is left untouched); or if the training could not be resumed.

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
        for name, value in (("every", every), ("keep", keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more: {name}={value!r}")
        if not isinstance(directory, (str, os.PathLike)):
            raise ValueError(f"directory must be a path: directory={directory!r}")
        self.directory = pathlib.Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"directory must not be a file: directory={str(directory)!r}")
        if data is not None and not callable(getattr(data, "set_epoch", None)):
            raise ValueError(
                "data must have set_epoch(epoch), as EpochShuffled has; other data are given to "
                f"fit alone: data={type(data).__name__}"
            )
        self.every, self.keep, self.data = every, keep, data
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            training_state.check_callback(callback)
        self.resumed_from = None
        self._late = []  # callbacks that come after this one
        self._found: Any = None  # the state to go on from, until that is done
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
        self._epoch, self.resumed_from, self._found, self._skipper = None, None, None, None
        backups = backup_files.paths(self.directory)
        if backups:
            state = backup_files.read(backups[-1])
            self._check_origin(backups[-1], state)
            self._found = state
            self._restore()
            training_state.set_random_state(state["random"])
            model._initial_epoch = state["epoch"]
            if state["stop_training"] and state["step"] == 0:
                model._initial_epoch = max(state["epoch"], self.params["epochs"])
        backup_files.remove_unfinished(self.directory)

    def on_epoch_begin(self, epoch, logs=None):
        state = self._found
        if self._epoch is None:
            self.model._initial_epoch = None  # which fit has read
            self._check_last(self.model)
        if state is not None:
            if epoch != state["epoch"]:
                raise ValueError(
                    "initial_epoch must be left out when training is to go on from a backup: "
                    f"initial_epoch={epoch}, epoch of the backup={state['epoch']}"
                )
            self._set_history()
            if state["step"] == 0:
                self._has_resumed()
            else:
                training_state.set_random_state(state["random_at_epoch"])  # to shuffle from
                self._skipper = _Skipper(self.model, self._steps_per_execution)
        if self.data is not None:
            self.data.set_epoch(epoch)
        self._epoch, self._random_at_epoch = epoch, training_state.random_state()

    def on_train_batch_begin(self, batch, logs=None):
        # Not at the end of a batch, which would keep Keras from running ahead of the device.
        if self._found is not None:
            if batch < self._found["step"]:
                self._skipper.skips_next = True
            else:
                self._go_on()
        elif batch // self.every > (batch - self._steps_per_execution) // self.every and batch > 0:
            self._save(self._epoch, batch, self._history())

    def on_epoch_end(self, epoch, logs=None):
        if self._found is not None:
            raise ValueError(
                "The data must have as many steps as when the backup was made: "
                f"epoch={epoch}, step of the backup={self._found['step']}"
            )
        self._save(epoch + 1, 0, self._history(epoch, logs))

    def on_train_end(self, logs=None):
        if self._epoch is None:
            self.model._initial_epoch = None
        if self._found is not None:  # there was nothing left to train
            self._set_history()
            metrics = self.model.metrics_variables
            if len(metrics) < len(self._found["variables"]["metrics"]) and self.data is not None:
                training_state.build_metrics(self.model, self.data[0])
            if len(self.model.metrics_variables) == len(self._found["variables"]["metrics"]):
                self._assign("metrics")
            self._has_resumed()

    def _check_fit(self, model):
        _check_model(model)
        for callback in self.callbacks:
            if callback.params is not self.params:
                raise ValueError(
                    "callbacks must also be in the list of callbacks of fit: "
                    f"callback={type(callback).__name__}"
                )
        if self._late:
            raise ValueError(
                "ExactResume must be the last of the callbacks of fit, so that what it restores "
                f"stays: after it={[type(c).__name__ for c in self._late]}"
            )
        for owner in training_state.rule_owners(model.optimizer):
            if hasattr(owner, "get_state") and owner not in self.callbacks:
                raise ValueError(
                    f"callbacks must have {type(owner).__name__}, which keeps state: "
                    f"callbacks={[type(c).__name__ for c in self.callbacks]}"
                )
        self._check_data()

    def _check_last(self, model):
        size = len(model.optimizer.variables)
        if size != self._optimizer_size:
            raise ValueError(
                "ExactResume must be the last of the callbacks of fit: after its turn variables "
                f"were added to the optimizer: before={self._optimizer_size}, now={size}"
            )

    def _check_data(self):
        steps = self.params["steps"]
        if hasattr(self.data, "__len__") and steps != len(self.data):
            raise ValueError(
                "data must be what fit reads, all of it in each epoch, without steps_per_epoch: "
                f"batches={len(self.data)}, steps={steps}"
            )
        needs_seed = self.data is None and keras.backend.backend() == "tensorflow"
        if needs_seed and backend.shuffling_seed() is None:
            raise ValueError(
                "TensorFlow must have a seed, or the order in which it shuffles cannot be found "
                "again: call keras.utils.set_random_seed, or use EpochShuffled: data=None, "
                "seed=None"
            )

    def _check_origin(self, path, state):
        different = training_state.differences(state["origin"], self._origin())
        if different:
            raise ValueError(
                "A backup must be of the same training, and is left as it is: "
                f"file={str(path)!r}, {different}"
            )
        epochs, ended = self.params["epochs"], state["epoch"]
        if (ended, state["step"]) > (epochs, 0):
            raise ValueError(
                "epochs must not be fewer than the backup is of, which is left as it is: "
                f"file={str(path)!r}, epochs={epochs}, ended={ended}, step={state['step']}"
            )

    def _origin(self):
        steps = self.params["steps"]
        return training_state.origin(self.model, self.callbacks, self.data, steps)

    def _history(self, epoch=None, logs=None):
        """The content of History; at the end of an epoch, that which it will have."""
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
            "variables": {name: training_state.read(group) for name, group in groups.items()},
            "history": history,
            "stop_training": bool(model.stop_training),
            "callbacks": [training_state.state_of(callback) for callback in self.callbacks],
            "random_at_epoch": self._random_at_epoch,
            "random": training_state.random_state(),
        }
        backup_files.write(self.directory, epoch, step, state, keep=self.keep)

    def _go_on(self):
        """After the last skipped step: what was set before, others may have changed since."""
        self._skipper.remove()
        state, model = self._found, self.model
        if len(model.metrics_variables) < len(state["variables"]["metrics"]):
            training_state.build_metrics(model, self._skipper.batch)
        self._restore()
        self._assign("metrics")
        self._set_history()
        model.stop_training = state["stop_training"]
        training_state.set_random_state(state["random"])
        self._has_resumed()

    def _restore(self):
        """All but what Keras resets before an epoch."""
        self._assign("model")
        self._assign("optimizer")
        for callback, state in zip(self.callbacks, self._found["callbacks"], strict=True):
            training_state.set_state(callback, state)

    def _assign(self, name):
        group = training_state.variables(self.model)[name]
        training_state.assign(name, group, self._found["variables"][name])

    def _set_history(self):
        history, saved = self.model.history, self._found["history"]
        history.epoch = list(saved["epoch"])
        history.history = {name: list(values) for name, values in saved["history"].items()}

    def _has_resumed(self):
        self.resumed_from = (self._found["epoch"], self._found["step"])
        self._found = self._skipper = None


class _Skipper:
    """Stands in for a model's training step; when told, takes the data and does nothing."""

    def __init__(self, model, steps):
        self.skips_next = False
        self.batch = None  # the last that was skipped
        self._model, self._steps = model, steps
        self._history = model.history  # each fit has one of its own
        self._function = model.train_function
        model.train_function = self

    def __call__(self, *arguments):
        if not self.skips_next or self._model.history is not self._history:
            # An exception ended the fit that was to skip.
            return self._function(*arguments)
        self.skips_next = False
        if keras.backend.backend() == "torch":
            return {}
        *state, iterator = arguments
        for _ in range(self._steps):
            self.batch = next(iterator)
        return ({}, *state) if state else {}

    def remove(self):
        """Put the training step back, unless another has taken this one's place."""
        if self._model.train_function is self:
            self._model.train_function = self._function


def _check_model(model):
    if not model.built:
        raise ValueError(
            f"The model must be built before fit: model={model.name!r}, built=False; "
            "give it an Input, or call it once"
        )
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if replicas > 1:
        raise ValueError(
            "Under tf.distribute each replica has values of its own, which are not saved: "
            f"num_replicas_in_sync={replicas}"
        )
