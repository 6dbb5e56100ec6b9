"""An exponential moving average of the weights, kept inside the compiled step."""

import contextlib

import keras
import numpy as np
from keras import ops

from kattn.arguments import check_choice, check_fractions, error
from kattn.callbacks.stochastic_weight_average import StochasticWeightAverage
from kattn.callbacks.update import fit_callbacks
from kattn.callbacks.update.rule import Rule
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.values import assign, copies

AT_END = ("average", "last")


class ExponentialMovingAverage(RuleCallback):
    """Keep the average a <- d a + (1 - d) w of the weights w, and validate with it.

    The average is updated after each update of the weights, inside the compiled step. It begins
    with the weights at the beginning of `fit`. Skipped updates do not count, and accumulated
    gradients count as one update. Only trainable weights are averaged: statistics of batch
    normalization are those of the training.

    `fit` validates with the average, so that `val_loss` is that of the average, and goes on
    training with the weights. At the end of an epoch the callbacks that come after this one in the
    list see the average too: an `EarlyStopping` with `restore_best_weights` gives the model the
    average of the best epoch after `fit`, and a `ModelCheckpoint` saves the average. Those that
    come before it see the weights as trained. During the batches all see the weights as trained.

    With warm-up, the update after t others uses d = min(decay, (1 + t) / (10 + t)), so that the
    average soon forgets the initial weights.

    Args:
        decay: Weight d of the past in the average, in [0, 1). The average is taken over about the
            last 1 / (1 - d) updates.
        warmup: Whether d grows to `decay` during the first updates.
        at_end: Which weights the model has after `fit`: "average", or "last" for the weights as
            trained. In both cases `averaged` gives access to the average until the next `fit`.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If an argument is out of range. When training begins, if the model has no
            optimizer or several (`MultiOptimizer`); if an `EarlyStopping` that restores the best
            weights, or a `ModelCheckpoint` that saves the best only, comes before this callback, as
            their metric would not be that of their weights; if a `BackupAndRestore` comes after it,
            as that needs the weights as trained; or with a `StochasticWeightAverage`.

    Reference:
        Polyak and Juditsky 1992, https://doi.org/10.1137/0330046, for the plain mean. The
        exponential mean with its warm-up is that of `tf.train.ExponentialMovingAverage`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.random.normal(size=(64, 8)), np.random.normal(size=(64, 1))
        >>> average = kattn.callbacks.ExponentialMovingAverage(0.99, at_end="last")
        >>> history = model.fit(x, y, validation_split=0.5, callbacks=[average], verbose=0)
        >>> with average.averaged():
        ...     model.save_weights("average.weights.h5")
    """

    def __init__(self, decay=0.999, *, warmup=True, at_end="average", optimizer=None):
        super().__init__(optimizer)
        check_fractions(decay=decay)
        if not isinstance(warmup, bool):
            raise error("`warmup` must be True or False", warmup=warmup)
        check_choice(AT_END, at_end=at_end)
        self.decay, self.warmup, self.at_end = float(decay), warmup, at_end
        self._raw: list[np.ndarray] | None = None  # weights as trained, while the average is in use
        self._last: list[np.ndarray] | None = None  # the average at the end of training

    def signature(self):
        return ("exponential_moving_average", *map(id, self._weights()))

    def make_rule(self):
        return _AverageRule(self._weights())

    def on_train_begin(self, logs=None):
        self._raw = self._last = None
        self._check_order()
        super().on_train_begin(logs)
        self.rule.start(self.decay, self.warmup, copies(self._weights()))

    def _check_order(self):
        before, after = fit_callbacks.before_and_after(self)
        early = [each for each in before if _keeps_the_best(each)]
        fit_callbacks.refuse(
            self,
            early,
            keras.callbacks.Callback,
            "Callbacks that keep the best weights must come after ExponentialMovingAverage in the "
            "list of callbacks, as validation sees the average",
        )
        fit_callbacks.refuse(
            self,
            after,
            keras.callbacks.BackupAndRestore,
            "Callbacks that save the weights as trained must come before ExponentialMovingAverage "
            "in the list of callbacks",
        )
        fit_callbacks.refuse(
            self,
            [*before, *after],
            StochasticWeightAverage,
            "Only one callback of a fit can average the weights",
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._swap_out()

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._swap_in()

    def on_test_begin(self, logs=None):
        if self.rule is not None:  # in `fit`
            self._swap_in()

    def on_test_end(self, logs=None):
        self._swap_out()

    def on_train_end(self, logs=None):
        self._swap_out()
        self._last = self.rule.values()
        if self.at_end == "average":
            assign(self._weights(), self._last)
        super().on_train_end(logs)

    def release(self):
        self._swap_out()
        super().release()

    @contextlib.contextmanager
    def as_trained(self):
        is_average = self._raw is not None
        self._swap_out()
        try:
            yield
        finally:
            if is_average:
                self._swap_in()

    @contextlib.contextmanager
    def averaged(self):
        """Give the model the average for the length of a `with` block, then its own weights again.

        Use it in other callbacks during `fit`, to save the average for example, or after `fit`.
        What the block does to the weights is lost.

        Raises:
            ValueError: If no `fit` with this callback has begun yet.
        """
        is_outermost = self._swap_in()
        try:
            yield
        finally:
            if is_outermost:
                self._swap_out()

    def get_state(self):
        """Return what a resumed training needs besides the variables of the optimizer."""
        return {f"raw_{i}": value for i, value in enumerate(self._raw or [])}

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        if state:
            self._raw = [np.array(state[f"raw_{i}"]) for i in range(len(state))]
            self._swap_out()

    def _weights(self):
        """The weights that the optimizer changes; scales of float8 are overwritten instead."""
        known = set(map(id, self.hook.weights))
        weights = [v for v in self.model.trainable_variables if id(v) in known]
        return [v for v in weights if not v.overwrite_with_gradient]

    def _swap_in(self):
        """Give the model the average; return False if it had the average already."""
        if self._raw is not None:
            return False
        rule = self.rule
        values = self._last if rule is None else rule.values()
        if values is None:
            raise error("`fit` must have been called before there is an average", average=None)
        weights = self._weights()
        self._raw = copies(weights)
        assign(weights, values)
        return True

    def _swap_out(self):
        if self._raw is not None:
            assign(self._weights(), self._raw)
            self._raw = None


def _keeps_the_best(callback):
    return getattr(callback, "restore_best_weights", False) or getattr(
        callback, "save_best_only", False
    )


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
        assign(self._averages, values)
        self._is_active.assign(1.0)

    def values(self):
        """Return the averages as NumPy arrays, on the host."""
        return copies(self._averages)

    def after_update(self, update):
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
