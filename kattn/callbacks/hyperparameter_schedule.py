"""Momentum, weight decay and other numbers that are functions of the step."""

from keras import ops

from kattn.callbacks.clip_rule import ClipRule
from kattn.callbacks.optimizer_hook import Rule, RuleCallback, hook_of, number
from kattn.callbacks.step_function import TABLE, StepFunction

OUTSIDE = (  # numbers of an optimizer that it uses before or after the update
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "loss_scale_factor",
)


class HyperparameterSchedule(RuleCallback):
    """A number of the optimizer in update t = schedule(t), inside the compiled step.

    The optimizer's attribute is not changed, and is in force again after `fit`. The logs of an
    epoch get the number under its name: that of the last update. `DropoutSchedule` is for dropout,
    `LearningRate` for the learning rate.

    Args:
        name: A number that the optimizer has as an attribute: "momentum", "weight_decay",
            "beta_1", "epsilon" ...; or "clip_threshold", that of `GradientClipping` for the weights
            outside of its groups.
        schedule: A function of the number of updates before this one, from 0; see `LearningRate`.

    Raises:
        ValueError: If `schedule` is not a function, or does not give one number for step 0. When
            training begins: if the optimizer has no such number, or has none of it (a momentum of
            0, a weight decay of None: it keeps no state for it).

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.1, momentum=0.95), "mse")
        >>> cycle = kattn.schedules.OneCycle(0.5, 8)
        >>> callbacks = [
        ...     kattn.callbacks.LearningRate(cycle),
        ...     kattn.callbacks.HyperparameterSchedule("momentum", cycle.momentum()),
        ... ]
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> history = model.fit(x, y, batch_size=1, callbacks=callbacks, verbose=0)
    """

    tend_every: int | None = TABLE // 2

    def __init__(self, name, schedule):
        super().__init__()
        if name in ("learning_rate", "dropout"):
            other = "LearningRate" if name == "learning_rate" else "DropoutSchedule"
            raise ValueError(f"name must be another number, for which {other} is: name={name!r}")
        if name in OUTSIDE:
            raise ValueError(
                "name must be of a number that an update uses; clipping can be scheduled as "
                f"clip_threshold: name={name!r}"
            )
        if not isinstance(name, str):
            raise ValueError(f"name must be that of an optimizer's number: name={name!r}")
        self.name, self.schedule = name, schedule
        self._function = StepFunction(schedule, "schedule")
        if self._function.is_traced:
            self.tend_every = None

    def signature(self):
        return ("number", self.name, self.schedule)

    def make_rule(self):
        optimizer = hook_of(self.model).optimizer
        own = getattr(optimizer, self.name, None)
        is_number = isinstance(own, (int, float)) and not isinstance(own, bool)
        if self.name != "clip_threshold" and not (is_number and own):
            raise ValueError(
                "name must be that of a number which the optimizer was built with: "
                f"name={self.name!r}, {type(optimizer).__name__}.{self.name}={own!r}"
            )
        return _ScheduledNumber(self.name, StepFunction(self.schedule, "schedule"))

    def on_epoch_begin(self, epoch, logs=None):
        rules = hook_of(self.model).rules
        is_there = any(isinstance(rule, ClipRule) and rule.owner is not None for rule in rules)
        if self.name == "clip_threshold" and not is_there:
            raise ValueError(
                "clip_threshold is that of a GradientClipping, which must be among the callbacks "
                f"of fit: name={self.name!r}"
            )

    def begin(self, rule):
        rule.is_active.assign(1.0)

    def tend(self, rule):
        rule.function.tabulate(number(hook_of(self.model).optimizer.iterations))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs[self.name] = number(self.rule.used)


class _ScheduledNumber(Rule):
    def __init__(self, name, function):
        self.sets = self.name = name
        self.function = function

    def build(self, hook):
        self.is_active = hook.add_variable((), f"{self.name}_is_active", stays=True)
        self.used = hook.add_variable((), f"{self.name}_used")
        self.function.build(hook)

    def numbers(self, update):
        is_active = ops.convert_to_tensor(self.is_active) > 0
        other = update.numbers.get(self.name)
        if other is None:  # a threshold below 0 is none
            other = float(getattr(update.optimizer, self.name, -1.0))
        found = ops.where(is_active, self.function(update.step), other)
        self.used.assign(found)
        return {self.name: found}

    def release(self):
        self.is_active.assign(0.0)
