"""A learning rate that is a function of the step, inside the compiled step."""

from kattn.callbacks.update.number_schedule import NumberSchedule


class LearningRate(NumberSchedule):
    """Set the learning rate of update t to schedule(t), whatever the optimizer was built with.

    The rate is computed inside the compiled step, from the number of updates that the optimizer
    counts. Therefore a resumed training continues its schedule, accumulated gradients count as one
    update, and with `steps_per_execution` each step has its own rate. During `fit`,
    `optimizer.learning_rate` is the rate of the next update; the optimizer's own rate is kept, and
    applies again after `fit`. The logs of each epoch get `learning_rate`, the rate of the last
    update; NaN before the first one.

    Args:
        schedule: Function that takes the number of updates made before, from 0, and returns the
            learning rate: a schedule of `kattn.schedules` or `keras.optimizers.schedules`, or a
            function of your own. It is traced with a float32 tensor. If that is not possible, as it
            branches on the step or uses `math`, it is called with integers instead, a few thousand
            steps in advance.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If `schedule` is not a function, or does not return one number for step 0. When
            training begins, if the model has no optimizer or several (`MultiOptimizer`), or if
            another callback of the same `fit` sets the learning rate, Keras's
            LearningRateScheduler and ReduceLROnPlateau included. After an epoch, if the optimizer
            makes no updates.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> schedule = kattn.schedules.WarmUp(kattn.schedules.Cosine(0.5, 0.0, 8), 2)
        >>> callback = kattn.callbacks.LearningRate(schedule)
        >>> x, y = np.ones((6, 2)), np.ones((6, 1))
        >>> history = model.fit(x, y, batch_size=1, callbacks=[callback], verbose=0)
        >>> round(history.history["learning_rate"][0], 4)  # at step 5, step 3 of the cosine
        0.3457
    """

    def __init__(self, schedule, *, optimizer=None):
        super().__init__("learning_rate", schedule, optimizer)
