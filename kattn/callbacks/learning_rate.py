"""A learning rate that is a function of the step, inside the compiled step."""

from keras import ops

from kattn.callbacks.optimizer_hook import Rule, RuleCallback, hook_of, number
from kattn.callbacks.step_function import TABLE, StepFunction


class LearningRate(RuleCallback):
    """Learning rate of update t = schedule(t), whatever rate the optimizer was built with.

    The rate is computed in the compiled step from the optimizer's own count of updates. So it needs
    nothing from the host, a resumed training goes on where it stood, accumulated gradients count
    as one update, and each of the steps that `steps_per_execution` joins has its own. The
    optimizer's `learning_rate` is not changed, and is in force again after `fit`. The logs of an
    epoch get `learning_rate`: that of its last update.

    Args:
        schedule: A function of the number of updates before this one, from 0: one of
            `kattn.schedules`, of `keras.optimizers.schedules`, or one's own. It is traced with a
            float32 tensor; one that cannot be (as it branches on the step, or uses `math`) is
            called with integers instead, some thousand steps ahead.

    Raises:
        ValueError: If `schedule` is not a function, or does not give one number for step 0. When
            training begins, if the model has no optimizer, or several (`MultiOptimizer`).

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> schedule = kattn.schedules.WarmUp(kattn.schedules.Cosine(0.5, 0.0, 8), 2)
        >>> callback = kattn.callbacks.LearningRate(schedule)
        >>> x, y = np.ones((6, 2)), np.ones((6, 1))
        >>> history = model.fit(x, y, batch_size=1, callbacks=[callback], verbose=0)
        >>> round(history.history["learning_rate"][0], 4)  # of step 5: 3 of the cosine's 8
        0.3457
    """

    tend_every: int | None = TABLE // 2

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        self._function = StepFunction(schedule, "schedule")
        if self._function.is_traced:
            self.tend_every = None

    def signature(self):
        return ("learning_rate", self.schedule)

    def make_rule(self):
        return _ScheduledRate(StepFunction(self.schedule, "schedule"))

    def begin(self, rule):
        rule.is_active.assign(1.0)

    def tend(self, rule):
        rule.function.tabulate(number(hook_of(self.model).optimizer.iterations))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs["learning_rate"] = number(self.rule.used)


class _ScheduledRate(Rule):
    sets = "learning_rate"

    def __init__(self, function):
        self.function = function

    def build(self, hook):
        self.is_active = hook.add_variable((), "learning_rate_is_active", stays=True)
        self.used = hook.add_variable((), "learning_rate_used")
        self.function.build(hook)

    def numbers(self, update):
        is_active = ops.convert_to_tensor(self.is_active) > 0
        rate = ops.where(is_active, self.function(update.step), update.learning_rate)
        self.used.assign(rate)
        return {"learning_rate": rate}

    def release(self):
        self.is_active.assign(0.0)
