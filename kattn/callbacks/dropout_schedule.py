"""Dropout rates that are a function of the step and change with epochs."""

import re

import keras

from kattn.arguments import error
from kattn.callbacks.update import interruption
from kattn.callbacks.update.hooks import hook_of, unused_optimizer
from kattn.callbacks.update.step_function import StepFunction
from kattn.callbacks.update.values import number
from kattn.paths import layer_paths


class DropoutSchedule(keras.callbacks.Callback):
    """Set the dropout rates of an epoch to schedule(number of updates before the epoch).

    A rate is part of the compiled step, so each new rate costs a new trace of the step. Therefore
    rates change between epochs only, and a schedule of few levels is cheaper than a smooth one.
    After `fit` the layers have the rates that they were built with. The logs of each epoch get
    `dropout`, the rate of the epoch.

    Args:
        schedule: Function that takes the number of updates made before the epoch and returns the
            dropout rate, in [0, 1): a schedule of `kattn.schedules`, or a function of your own.
        pattern: Regular expression that is searched for in the paths of layers. Only layers that
            match are changed. None for all layers that have a dropout rate above 0.
        optimizer: Optimizer whose updates are counted, or the name of the attribute of the model
            that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If `schedule` is not a function, or does not return one number for step 0; if
            `pattern` is not a regular expression. When training begins, if no layer that matches
            has a dropout rate above 0. At the beginning of an epoch, if a rate is not in [0, 1). At
            its end, if the optimizer makes no updates.

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

    def __init__(self, schedule, *, pattern=None, optimizer=None):
        super().__init__()
        StepFunction(schedule, "schedule")
        self.schedule, self.optimizer = schedule, optimizer
        try:
            self._pattern = re.compile(pattern or "")
        except (re.error, TypeError) as fault:
            raise error(
                f"`pattern` must be a regular expression ({fault})", pattern=pattern
            ) from fault
        self._stock: list[tuple] = []  # layer, name of the attribute, first rate
        self._rate: float | None = None  # of this epoch

    def on_train_begin(self, logs=None):
        self.release()
        interruption.watch(self)
        paths = layer_paths(self.model)
        layers = [x for x in self.model._flatten_layers() if self._pattern.search(paths[id(x)])]
        for layer in layers:
            attribute = "rate" if _is_dropout(layer) else "dropout"
            rate = getattr(layer, attribute, None)
            # A recurrent layer shows the rate of its cell, which is a layer of its own.
            is_shown = isinstance(getattr(type(layer), attribute, None), property)
            if isinstance(rate, float) and rate > 0 and not is_shown:
                self._stock.append((layer, attribute, rate))
        if not self._stock:
            raise error(
                "The model must have a layer with a dropout rate above 0 that matches `pattern`",
                pattern=self._pattern.pattern,
                layers=[paths[id(layer)] for layer in layers],
            )

    def on_epoch_begin(self, epoch, logs=None):
        hook = hook_of(self.model, self.optimizer)
        step = number(hook.optimizer.iterations)
        self._batches = number(hook.optimizer._iterations)
        rate = float(self.schedule(step))
        if not 0 <= rate < 1:
            raise error("`schedule` must return rates in [0, 1)", **{f"schedule({step})": rate})
        self._rate = rate
        self._set({id(layer): rate for layer, _, _ in self._stock})

    def get_state(self):
        """Return what a resumed training needs. List the callback in those of `ExactResume`."""
        return {"rate": self._rate}

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        self._rate = state["rate"]
        if self._rate is not None:
            self._set({id(layer): self._rate for layer, _, _ in self._stock})

    def on_epoch_end(self, epoch, logs=None):
        hook = hook_of(self.model, self.optimizer)
        if not hook.has_updated and number(hook.optimizer._iterations) == self._batches:
            raise unused_optimizer(self)
        if logs is not None:
            logs["dropout"] = self._rate

    def on_train_end(self, logs=None):
        self.release()

    def release(self):
        """Give the layers their own rates again.

        It is called at the end of `fit`, also of one that is interrupted or raises an error.
        """
        interruption.end(self)
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


def _is_dropout(layer):
    layers = keras.layers
    kinds = (layers.Dropout, layers.GaussianDropout, layers.AlphaDropout, layers.SpatialDropout1D)
    return isinstance(layer, (*kinds, layers.SpatialDropout2D, layers.SpatialDropout3D))
