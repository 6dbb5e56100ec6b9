"""A learning rate that warms up, stays, and falls when a metric stops improving."""

import math
import warnings

from keras import ops

from kattn.arguments import (
    check_choice,
    check_integers,
    check_open_fractions,
    check_positive,
    check_rates,
    error,
)
from kattn.callbacks.update.rule import Rule
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.values import number

MODES = ("auto", "min", "max")


class WarmupThenPlateau(RuleCallback):
    """Warm up the learning rate, then cut it whenever a metric stops improving.

    The learning rate of update t is rate * min(1, (t + 1) / warmup_steps), and `rate` is multiplied
    by `factor` when the metric has not improved for `patience` epochs. The warm-up is part of the
    compiled step, and counts the updates of the optimizer. Epochs that begin during the warm-up do
    not count as waiting.

    Whatever rate or schedule the optimizer was built with is not used, and applies again after
    `fit`; `optimizer.learning_rate` is the rate of the next update meanwhile. The logs of each
    epoch get `learning_rate`, the rate of the last update; NaN before the first one. A second
    `fit` begins with the rate that the first one ended with, and starts to wait from 0.

    Args:
        rate: Learning rate after the warm-up, above 0.
        warmup_steps: Number of updates of the warm-up, an integer >= 0; 0 for no warm-up.
        monitor: Name of the metric in the logs of an epoch.
        mode: "min" if lower values are better, "max" if higher values are better. "auto" is "min"
            for losses, and for metrics of the model what the metric says of itself, as in Keras's
            own callbacks.
        factor: Factor on the rate on a plateau, in (0, 1).
        patience: Number of epochs without an improvement that make a plateau, an integer >= 1.
        min_delta: Smallest change of the metric that counts as an improvement, >= 0.
        cooldown: Number of epochs after a cut that do not count as waiting, an integer >= 0.
        min_rate: Lower bound of the rate, from 0 to `rate`.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If an argument is out of range. When training begins, if the model has no
            optimizer or several, or if another callback of the same `fit` sets the learning rate.
            At the end of an epoch, if its logs do not have the metric, or `mode` is "auto" and the
            metric does not say which values are better. An epoch that is not validated, as
            `validation_freq` says, may lack a metric of the validation: it does not count.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> callback = kattn.callbacks.WarmupThenPlateau(
        ...     0.5, warmup_steps=4, monitor="loss", patience=1, min_delta=1e9
        ... )
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> fit = {"batch_size": 2, "epochs": 4, "callbacks": [callback], "verbose": 0}
        >>> [round(rate, 4) for rate in model.fit(x, y, **fit).history["learning_rate"]]
        [0.5, 0.5, 0.5, 0.05]
    """

    def __init__(
        self,
        rate,
        warmup_steps=0,
        *,
        monitor="val_loss",
        mode="auto",
        factor=0.1,
        patience=10,
        min_delta=1e-4,
        cooldown=0,
        min_rate=0.0,
        optimizer=None,
    ):
        super().__init__(optimizer)
        check_positive(rate=rate)
        check_open_fractions(factor=factor)
        check_rates(min_delta=min_delta, min_rate=min_rate)
        if min_rate > rate:
            raise error("`min_rate` must not be above `rate`", min_rate=min_rate, rate=rate)
        check_integers(0, warmup_steps=warmup_steps, cooldown=cooldown)
        check_integers(1, patience=patience)
        check_choice(MODES, mode=mode)
        self.warmup_steps, self.monitor = warmup_steps, monitor
        self.factor, self.patience, self.min_delta = factor, patience, min_delta
        self.cooldown, self.min_rate = cooldown, min_rate
        self.mode = mode
        self._has_warned = False
        self.rate = float(rate)
        self._best, self._waited, self._cooling = math.inf, 0, 0
        self._is_warm = True

    def signature(self):
        return ("plateau", self.warmup_steps)

    def make_rule(self):
        return _Plateau(self.warmup_steps)

    def on_train_begin(self, logs=None):
        self._best, self._waited, self._cooling = math.inf, 0, 0
        self._has_warned = False
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.rate.assign(self.rate)

    def on_epoch_begin(self, epoch, logs=None):
        self._is_warm = number(self.hook.optimizer.iterations) >= self.warmup_steps

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        super().on_epoch_end(epoch, logs)
        rule = self.rule
        if self.monitor not in logs:
            self._check_is_missing(logs)
        elif self._is_warm:
            sign = -1.0 if self._is_higher_better() else 1.0
            self._judge(sign * float(logs[self.monitor]))
            rule.rate.assign(self.rate)
        logs["learning_rate"] = number(rule.used)

    def _check_is_missing(self, logs):
        """Raise ValueError unless the metric is missing as the epoch was not validated."""
        is_validated = any(name.startswith("val_") for name in logs)
        if is_validated or not self.monitor.startswith("val_"):
            raise error(
                "`monitor` must be in the logs of an epoch", monitor=self.monitor, logs=sorted(logs)
            )
        if not self._has_warned and not math.isfinite(self._best):
            self._has_warned = True
            warnings.warn(
                f"WarmupThenPlateau has not seen {self.monitor!r} yet: it waits for an epoch that "
                "is validated",
                stacklevel=2,
            )

    def _is_higher_better(self):
        """What `mode` says, or the metric itself."""
        if self.mode != "auto":
            return self.mode == "max"
        name = self.monitor.removeprefix("val_")
        if name.endswith("loss"):
            return False
        for metric in _flat(self.model.metrics):
            if metric.name == name and hasattr(metric, "_direction"):
                return metric._direction == "up"
        raise error(
            '`mode` must be "min" or "max" for a metric that does not say which values are better',
            monitor=self.monitor,
            mode=self.mode,
        )

    def _judge(self, value):
        """Take account of the metric of an epoch, whose sign is such that lower is better."""
        self._cooling = max(self._cooling - 1, 0)
        if value < self._best - self.min_delta or not math.isfinite(self._best):
            self._best = value if math.isfinite(value) else self._best
            self._waited = 0
        elif not self._cooling:
            self._waited += 1
        if self._waited >= self.patience:
            self.rate = max(self.rate * self.factor, self.min_rate)
            self._waited, self._cooling = 0, self.cooldown + 1 if self.cooldown else 0

    def get_state(self):
        """Return what a resumed training needs besides the variables of the optimizer."""
        return {
            "rate": self.rate,
            "best": self._best,
            "waited": self._waited,
            "cooling": self._cooling,
            "is_warm": self._is_warm,
        }

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        self.rate, self._best = state["rate"], state["best"]
        self._waited, self._cooling = state["waited"], state["cooling"]
        self._is_warm = state["is_warm"]
        rule = self.rule
        if rule is not None:
            rule.rate.assign(self.rate)


def _flat(metrics):
    """Metrics, and those that metrics consist of."""
    for metric in metrics:
        yield metric
        yield from _flat(getattr(metric, "metrics", ()))


class _Plateau(Rule):
    sets = "learning_rate"

    def __init__(self, warmup_steps):
        self._warmup_steps = warmup_steps

    def build(self, hook):
        self.rate = hook.add_variable((), "plateau_rate", value=-1.0, stays=True)
        self.used = hook.add_variable((), "plateau_rate_used", value=math.nan)

    def numbers(self, update):
        rate = ops.convert_to_tensor(self.rate)
        done = (ops.cast(update.step, "float32") + 1.0) / max(self._warmup_steps, 1)
        own = rate * ops.minimum(done, 1.0) if self._warmup_steps else rate
        return {"learning_rate": ops.where(rate >= 0, own, update.number("learning_rate"))}

    def after_update(self, update):
        self.used.assign(update.numbers["learning_rate"])

    def release(self):
        self.rate.assign(-1.0)
