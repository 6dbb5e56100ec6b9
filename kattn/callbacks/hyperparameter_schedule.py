"""Momentum, weight decay and other numbers that are functions of the step."""

from kattn.arguments import error
from kattn.callbacks.update.clip_rule import ClipRule
from kattn.callbacks.update.number_schedule import NumberSchedule

OUTSIDE = (  # numbers of an optimizer that it uses before or after the update
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "loss_scale_factor",
)
OTHERS = {"learning_rate": "LearningRate", "dropout": "DropoutSchedule"}


class HyperparameterSchedule(NumberSchedule):
    """Set a number of the optimizer in update t to schedule(t), such as the momentum.

    The number is computed inside the compiled step. The attribute of the optimizer is not changed,
    and applies again after `fit`. The logs of each epoch get the number of the epoch's last update,
    under its name; NaN before the first update. Use `LearningRate` to schedule the learning rate,
    and `DropoutSchedule` to schedule dropout.

    Args:
        name: Name of the number: an attribute of the optimizer, such as "momentum", "weight_decay",
            "beta_1" or "epsilon"; or "clip_threshold" for the threshold of a `GradientClipping`,
            which then applies to the weights outside of its groups.
        schedule: Function that takes the number of updates made before, from 0, and returns the
            number: a schedule of `kattn.schedules`, or a function of your own. It is traced if
            possible, and called with integers in advance if not.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If `schedule` is not a function, or does not return one number for step 0; if
            `name` is the learning rate, dropout, or a number that is not used in an update. When
            training begins, if the optimizer was built without this number, with a momentum of 0 or
            a weight decay of None for example, as it then keeps no state for it; or if
            "clip_threshold" is scheduled and there is no `GradientClipping` among the callbacks of
            `fit`.

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

    def __init__(self, name, schedule, *, optimizer=None):
        if not isinstance(name, str):
            raise error("`name` must be the name of a number of the optimizer", name=name)
        if name in OTHERS:
            raise error(
                f"`name` must be another number; use `{OTHERS[name]}` to schedule this one",
                name=name,
            )
        if name in OUTSIDE:
            raise error(
                "`name` must be a number that is used in an update; clipping can be scheduled as "
                "'clip_threshold'",
                name=name,
            )
        super().__init__(name, schedule, optimizer)

    def make_rule(self):
        optimizer = self.hook.optimizer
        own = getattr(optimizer, self.name, None)
        is_number = isinstance(own, (int, float)) and not isinstance(own, bool)
        has_state = self.name != "momentum" or own != 0
        if self.name != "clip_threshold" and not (is_number and has_state):
            raise error(
                "`name` must be a number that the optimizer was built with",
                name=self.name,
                **{f"{type(optimizer).__name__}.{self.name}": own},
            )
        return super().make_rule()

    def on_epoch_begin(self, epoch, logs=None):
        rules = self.hook.rules
        is_there = any(isinstance(rule, ClipRule) and rule.owner is not None for rule in rules)
        if self.name == "clip_threshold" and not is_there:
            raise error(
                "A GradientClipping must be among the callbacks of fit for its threshold to be "
                "scheduled",
                name=self.name,
            )
