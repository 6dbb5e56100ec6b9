"""What `LearningRate` and `HyperparameterSchedule` have in common."""

from keras import ops

from kattn.callbacks.update.optimizer_hook import hook_of
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
    """

    synchronize_every: int | None = TABLE // 2

    def __init__(self, name, schedule):
        super().__init__()
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
        rule.function.tabulate(number(hook_of(self.model).optimizer.iterations))

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
        self.used = hook.add_variable((), f"{self.name}_used")
        self.function.build(hook)

    def numbers(self, update):
        is_active = ops.convert_to_tensor(self.is_active) > 0
        value = ops.where(is_active, self.function(update.step), update.number(self.name))
        self.used.assign(value)
        return {self.name: value}

    def release(self):
        self.is_active.assign(0.0)
