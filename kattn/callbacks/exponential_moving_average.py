"""An exponential moving average of the weights, kept inside the compiled step."""

import contextlib

import keras
import numpy as np
from keras import ops

from kattn.callbacks.optimizer_hook import Rule, RuleCallback

AT_END = ("average", "last")


class ExponentialMovingAverage(RuleCallback):
    """Average a <- d a + (1 - d) w after each update; validation and the end of training use it.

    The average starts from the weights at the beginning of `fit`. Skipped updates do not count, and
    accumulated gradients count as one update. It is of trainable weights alone: batch statistics
    are those of the training. `fit` validates with the average, and trains on with the weights.

    With warm-up, d = min(decay, (1 + t) / (10 + t)) in the update after t others, so that the
    average forgets the initial weights soon.

    Args:
        decay: d, in [0, 1). The average is of the last 1 / (1 - d) updates or so.
        warmup: Whether d grows to `decay`, as above.
        at_end: What the model has after `fit`: "average" or "last", the weights as trained. In
            either case `averaged` gives the average until the next `fit`.

    Raises:
        ValueError: If an argument is out of its range. When training begins, if the model has no
            optimizer, or several (`MultiOptimizer`).

    Reference:
        Polyak and Juditsky 1992, https://doi.org/10.1137/0330046, for the plain mean; exponential
        with the warm-up of `tf.train.ExponentialMovingAverage`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.random.normal(size=(64, 8)), np.random.normal(size=(64, 1))
        >>> average = kattn.callbacks.ExponentialMovingAverage(0.99, at_end="last")
        >>> history = model.fit(x, y, validation_split=0.5, callbacks=[average], verbose=0)
        >>> with average.averaged():
        ...     model.save_weights("average.weights.h5")
    """

    def __init__(self, decay=0.999, *, warmup=True, at_end="average"):
        super().__init__()
        is_number = isinstance(decay, int | float) and not isinstance(decay, bool)
        if not is_number or not 0 <= decay < 1:
            raise ValueError(f"decay must be a number in [0, 1): decay={decay!r}")
        if not isinstance(warmup, bool):
            raise ValueError(f"warmup must be True or False: warmup={warmup!r}")
        if at_end not in AT_END:
            raise ValueError(f"at_end must be one of {AT_END}: at_end={at_end!r}")
        self.decay, self.warmup, self.at_end = float(decay), warmup, at_end
        self._raw: list[np.ndarray] | None = None  # weights as trained, while the average is in use
        self._last: list[np.ndarray] | None = None  # the average at the end of training

    def signature(self):
        return ("exponential_moving_average", *[v.path for v in _weights(self.model)])

    def make_rule(self):
        return _AverageRule(_weights(self.model))

    def on_train_begin(self, logs=None):
        self._raw = self._last = None
        super().on_train_begin(logs)
        self.rule.start(self.decay, self.warmup, _values(_weights(self.model)))

    def on_test_begin(self, logs=None):
        if self.rule is not None:  # in `fit`
            self._swap_in()

    def on_test_end(self, logs=None):
        self._swap_out()

    def on_train_end(self, logs=None):
        self._swap_out()
        self._last = self.rule.values()
        if self.at_end == "average":
            _assign(_weights(self.model), self._last)
        super().on_train_end(logs)

    @contextlib.contextmanager
    def averaged(self):
        """The model has the average in the block, and its own weights again after it.

        For other callbacks during `fit`, say to save the average, and for use after it. What the
        block does to the weights is lost.

        Raises:
            ValueError: If nothing has been trained yet.
        """
        is_outermost = self._swap_in()
        try:
            yield
        finally:
            if is_outermost:
                self._swap_out()

    def get_state(self):
        """What a resumed training needs, beside the optimizer's variables."""
        return {f"raw_{i}": value for i, value in enumerate(self._raw or [])}

    def set_state(self, state):
        """Take up a state, once training has begun: the weights as trained."""
        if state:
            self._raw = [np.array(state[f"raw_{i}"]) for i in range(len(state))]
            self._swap_out()

    def _swap_in(self):
        """Whether the average was not in use before."""
        if self._raw is not None:
            return False
        rule = self.rule
        values = self._last if rule is None else rule.values()
        if values is None:
            raise ValueError("There is no average before training: rule=None")
        weights = _weights(self.model)
        self._raw = _values(weights)
        _assign(weights, values)
        return True

    def _swap_out(self):
        if self._raw is not None:
            _assign(_weights(self.model), self._raw)
            self._raw = None


class _AverageRule(Rule):
    order = 100

    def __init__(self, weights):
        self._places = {id(weight): i for i, weight in enumerate(weights)}
        self._kinds = [
            (weight.shape, keras.backend.result_type(weight.dtype, "float32")) for weight in weights
        ]

    def build(self, hook):
        self._is_active = hook.add_variable((), "average_is_active", stays=True)
        self._decay = hook.add_variable((), "average_decay", stays=True)
        self._count = hook.add_variable((), "average_count", dtype="int32")
        self._warmup = hook.add_variable((), "average_warmup", stays=True)
        self._averages = [
            hook.add_variable(shape, f"average_{i}", dtype=dtype)
            for i, (shape, dtype) in enumerate(self._kinds)
        ]

    def start(self, decay, warmup, values):
        self._decay.assign(decay)
        self._warmup.assign(float(warmup))
        self._count.assign(0)
        _assign(self._averages, values)
        self._is_active.assign(1.0)

    def values(self):
        """On the host."""
        return _values(self._averages)

    def after(self, update):
        counts = ops.convert_to_tensor(self._is_active) > 0
        if update.is_good is not None:
            counts = ops.logical_and(counts, update.is_good)
        count = ops.convert_to_tensor(self._count)
        past = ops.convert_to_tensor(self._decay)
        updates = ops.cast(count, "float32")
        growing = ops.minimum(past, (1.0 + updates) / (10.0 + updates))
        past = ops.where(ops.convert_to_tensor(self._warmup) > 0, growing, past)
        for weight in update.variables:
            if id(weight) in self._places:
                average = self._averages[self._places[id(weight)]]
                before = ops.convert_to_tensor(average)
                decay = ops.cast(past, before.dtype)
                now = ops.cast(ops.convert_to_tensor(weight), before.dtype)
                after = decay * before + (1.0 - decay) * now
                average.assign(ops.where(counts, after, before))
        self._count.assign(count + ops.cast(counts, "int32"))

    def release(self):
        self._is_active.assign(0.0)


def _weights(model):
    """Those that updates change by gradients; scales of float8 are written over instead."""
    return [v for v in model.trainable_variables if not v.overwrite_with_gradient]


def _values(variables):
    return [np.array(ops.convert_to_numpy(variable), copy=True) for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
