"""What `LearningRate` and `HyperparameterSchedule` have in common."""

import math

from keras import ops

from kattn.callbacks.update.rule import Rule
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.step_function import TABLE, StepFunction
from kattn.callbacks.update.values import number


class NumberSchedule(RuleCallback):
    """Base class of callbacks that make a number of the optimizer a function of the step.

    The logs of each epoch get the number of its last update, under the name of the number.

    Args:
        name: Name of the number: an attribute of the optimizer, or "clip_threshold".
        schedule: Function of the number of updates made before, from 0.
        optimizer: Optimizer that the callback acts on, as in `RuleCallback`.
    """

    synchronize_every: int | None = TABLE // 2

    def __init__(self, name, schedule, optimizer=None):
        super().__init__(optimizer)
        self.name, self.schedule = name, schedule
        self._function = StepFunction(schedule, "schedule")
        if self._function.is_traced:
            self.synchronize_every = None

    def signature(self):
        return ("number", self.name, self.schedule)

    def make_rule(self):
        return ScheduledNumber(self.name, StepFunction(self.schedule, "schedule"))

    def begin(self, rule):
        rule.is_active.assign(1.0)

    def synchronize(self, rule):
        hook = self.hook
        self._moves = hook.moves
        rule.function.tabulate(number(hook.optimizer.iterations))

    def on_train_batch_begin(self, batch, logs=None):
        if self.synchronize_every is not None and self._hook.moves != self._moves:
            self.renew()  # the table is for other updates
        super().on_train_batch_begin(batch, logs)

    def renew(self):
        self._synchronize(self.rule)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs[self.name] = number(self.rule.used)


class ScheduledNumber(Rule):
    """Sets a number of the optimizer to a function of the step.

    Args:
        name: Name of the number.
        function: A `StepFunction`.
    """

    def __init__(self, name, function):
        self.sets = self.name = name
        self.function = function

    def build(self, hook):
        self.is_active = hook.add_variable((), f"{self.name}_is_active", stays=True)
        self.used = hook.add_variable((), f"{self.name}_used", value=math.nan)
        self.function.build(hook)

    def numbers(self, update):
        is_active = ops.convert_to_tensor(self.is_active) > 0
        own = update.number(self.name)
        return {self.name: ops.where(is_active, self.function(update.step), own)}

    def after_update(self, update):
        self.used.assign(update.numbers[self.name])

    def release(self):
        self.is_active.assign(0.0)
