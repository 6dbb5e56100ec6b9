"""A learning rate that warms up, holds, and falls when a metric stops getting better."""

import math

import numpy as np
from keras import ops

from kattn.callbacks.optimizer_hook import Rule, RuleCallback, hook_of, number

MODES = ("auto", "min", "max")


class WarmupThenPlateau(RuleCallback):
    """Learning rate of update t = rate * min(1, (t + 1) / warmup_steps), cut on plateaus.

    The warm-up is part of the compiled step, by the optimizer's own count of updates. Epochs that
    begin in the warm-up do not count as waiting. Works whatever rate or schedule the optimizer was
    built with, which is in force again after `fit`. The logs of an epoch get `learning_rate`, that
    of its last update. A second `fit` begins with the rate that the first ended with, and waits
    anew.

    Args:
        rate: The learning rate after the warm-up, above 0.
        warmup_steps: Updates of the warm-up, 0 for none.
        monitor: The metric in an epoch's logs.
        mode: "min" if lower is better, "max" if higher; "auto": "max" for names that end in
            accuracy, acc or auc, else "min".
        factor: Of the rate on a plateau, in (0, 1).
        patience: Epochs without an improvement that make a plateau, 1 or more.
        min_delta: What counts as an improvement, at least: 0 or more.
        cooldown: Epochs after a cut that do not count as waiting, 0 or more.
        min_rate: The rate is not cut below this; 0 or more.

    Raises:
        ValueError: If an argument is out of its range. At the end of an epoch, if its logs lack the
            metric.

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
    ):
        super().__init__()
        _check("rate", rate, "a number above 0", _number(rate) > 0)
        _check("factor", factor, "in (0, 1)", 0 < _number(factor) < 1)
        _check("min_delta", min_delta, "a number, 0 or more", _number(min_delta) >= 0)
        _check("min_rate", min_rate, "a number, 0 or more", _number(min_rate) >= 0)
        counts = {"warmup_steps": warmup_steps, "patience": patience, "cooldown": cooldown}
        for name, value in counts.items():
            least = 1 if name == "patience" else 0
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            _check(name, value, f"a whole number, {least} or more", is_whole and value >= least)
        _check("mode", mode, f"one of {MODES}", mode in MODES)
        self.warmup_steps, self.monitor = warmup_steps, monitor
        self.factor, self.patience, self.min_delta = factor, patience, min_delta
        self.cooldown, self.min_rate = cooldown, min_rate
        is_max = mode == "max" or (mode == "auto" and monitor.endswith(("acc", "accuracy", "auc")))
        self._sign = -1.0 if is_max else 1.0
        self.rate = float(rate)
        self._best, self._waited, self._cooling = math.inf, 0, 0
        self._is_warm = True

    def signature(self):
        return ("plateau", self.warmup_steps)

    def make_rule(self):
        return _Plateau(self.warmup_steps)

    def on_train_begin(self, logs=None):
        self._best, self._waited, self._cooling = math.inf, 0, 0
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.rate.assign(self.rate)

    def on_epoch_begin(self, epoch, logs=None):
        self._is_warm = number(hook_of(self.model).optimizer.iterations) >= self.warmup_steps

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        if self.monitor not in logs:
            raise ValueError(
                f"monitor must be in the logs of an epoch: monitor={self.monitor!r}, "
                f"logs={sorted(logs)}"
            )
        rule = self.rule
        logs["learning_rate"] = number(rule.used)
        if self._is_warm:
            self._judge(self._sign * float(logs[self.monitor]))
            rule.rate.assign(self.rate)

    def _judge(self, value):
        """Of an epoch: `value` is better the lower it is."""
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
        """What a resumed training needs, beside the optimizer's variables."""
        return {
            "rate": self.rate,
            "best": self._best,
            "waited": self._waited,
            "cooling": self._cooling,
            "is_warm": self._is_warm,
        }

    def set_state(self, state):
        """Take up a state, once training has begun."""
        self.rate, self._best = state["rate"], state["best"]
        self._waited, self._cooling = state["waited"], state["cooling"]
        self._is_warm = state["is_warm"]
        rule = self.rule
        if rule is not None:
            rule.rate.assign(self.rate)


class _Plateau(Rule):
    sets = "learning_rate"

    def __init__(self, warmup_steps):
        self._warmup_steps = warmup_steps

    def build(self, hook):
        self.rate = hook.add_variable((), "plateau_rate", value=-1.0, stays=True)
        self.used = hook.add_variable((), "plateau_rate_used")

    def numbers(self, update):
        rate = ops.convert_to_tensor(self.rate)
        done = (ops.cast(update.step, "float32") + 1.0) / max(self._warmup_steps, 1)
        own = rate * ops.minimum(done, 1.0) if self._warmup_steps else rate
        own = ops.where(rate >= 0, own, update.learning_rate)
        self.used.assign(own)
        return {"learning_rate": own}

    def release(self):
        self.rate.assign(-1.0)


def _number(value):
    """NaN, which no rule holds for, if it is none."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return value if is_number else math.nan


def _check(name, value, rule, holds):
    if not holds:
        raise ValueError(f"{name} must be {rule}: {name}={value!r}")
