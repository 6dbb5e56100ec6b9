"""Dropout rates that are a function of the step, epoch by epoch."""

import re

import keras

from kattn.callbacks.optimizer_hook import hook_of, number
from kattn.callbacks.step_function import StepFunction


class DropoutSchedule(keras.callbacks.Callback):
    """Dropout rates of an epoch = schedule(updates before it).

    A rate is part of the compiled step: each new one costs a trace of it, so that it changes with
    epochs, and a schedule of few steps is cheaper than a smooth one. After `fit` the layers have
    the rates that they were made with. The logs of an epoch get `dropout`.

    Args:
        schedule: A function of the number of updates before an epoch; see `LearningRate`. Values in
            [0, 1).
        pattern: Layers whose path this regular expression is found in; None for all that drop.

    Raises:
        ValueError: If `schedule` is not a function, or does not give one number for step 0; if
            `pattern` is not a regular expression. When training begins, if no layer drops at a rate
            above 0, or none of them matches; at an epoch, if a rate is not in [0, 1).

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        ... )
        >>> model.compile("adam", "mse")
        >>> schedule = kattn.schedules.Step(0.4, [4], factor=0.5)
        >>> callback = kattn.callbacks.DropoutSchedule(schedule)
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> fit = {"batch_size": 2, "epochs": 2, "callbacks": [callback], "verbose": 0}
        >>> model.fit(x, y, **fit).history["dropout"]
        [0.4, 0.2]
    """

    def __init__(self, schedule, *, pattern=None):
        super().__init__()
        StepFunction(schedule, "schedule")
        self.schedule = schedule
        try:
            self._pattern = re.compile(pattern or "")
        except (re.error, TypeError) as error:
            raise ValueError(
                f"pattern must be a regular expression: pattern={pattern!r}, error={error}"
            ) from error
        self._stock: list[tuple] = []  # layer, attribute, rate
        self._rate: float | None = None  # of this epoch

    def on_train_begin(self, logs=None):
        self.release()
        layers = [x for x in self.model._flatten_layers() if self._pattern.search(_path(x))]
        for layer in layers:
            attribute = "rate" if _is_dropout(layer) else "dropout"
            rate = getattr(layer, attribute, None)
            # A recurrent layer shows the rate of its cell, which is a layer of its own.
            is_shown = isinstance(getattr(type(layer), attribute, None), property)
            if isinstance(rate, float) and rate > 0 and not is_shown:
                self._stock.append((layer, attribute, rate))
        if not self._stock:
            raise ValueError(
                "There must be layers that drop and match `pattern`: "
                f"pattern={self._pattern.pattern!r}, layers={[_path(layer) for layer in layers]}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        step = number(hook_of(self.model).optimizer.iterations)
        rate = float(self.schedule(step))
        if not 0 <= rate < 1:
            raise ValueError(f"schedule must give rates in [0, 1): schedule({step})={rate}")
        self._rate = rate
        self._set({id(layer): rate for layer, _, _ in self._stock})

    def get_state(self):
        """What a resumed training needs: `ExactResume` wants it among its `callbacks`."""
        return {"rate": self._rate}

    def set_state(self, state):
        """Take up a state, once training has begun."""
        self._rate = state["rate"]
        if self._rate is not None:
            self._set({id(layer): self._rate for layer, _, _ in self._stock})

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["dropout"] = self._rate

    def on_train_end(self, logs=None):
        self.release()

    def release(self):
        """Give the layers their own rates again: for the end of a `fit` that raised."""
        self._set({id(layer): rate for layer, _, rate in self._stock})
        self._stock = []

    def _set(self, rates):
        is_new = False
        for layer, attribute, _ in self._stock:
            if getattr(layer, attribute) != rates[id(layer)]:
                setattr(layer, attribute, rates[id(layer)])
                is_new = True
        if is_new:
            self.model.make_train_function(force=True)


def _path(layer):
    return layer.path or layer.name  # a model has none before it is called


def _is_dropout(layer):
    layers = keras.layers
    kinds = (layers.Dropout, layers.GaussianDropout, layers.AlphaDropout, layers.SpatialDropout1D)
    return isinstance(layer, (*kinds, layers.SpatialDropout2D, layers.SpatialDropout3D))
