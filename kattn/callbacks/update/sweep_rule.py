"""What `LearningRateFinder` does in each update."""

from keras import ops

from kattn.callbacks.update.rule import Rule


class SweepRule(Rule):
    """Sets learning rates that grow exponentially from update to update."""

    order = 5  # after schedules

    def build(self, hook):
        self._is_active = hook.add_variable((), "finder_is_active")
        self._low = hook.add_variable((), "finder_low")
        self._slope = hook.add_variable((), "finder_slope")
        self._start = hook.add_variable((), "finder_start", dtype="int32")
        self._steps = hook.add_variable((), "finder_steps", dtype="int32")

    def start(self, start, low, slope, steps):
        """Begin a sweep, on the host.

        Args:
            start: Number of updates that were made before.
            low: Rate of the first update.
            slope: Growth of the logarithm of the rate in each update.
            steps: Number of updates.
        """
        self._start.assign(start)
        self._steps.assign(steps)
        self._low.assign(low)
        self._slope.assign(slope)
        self._is_active.assign(1.0)

    def numbers(self, update):
        low, slope, start, steps = map(
            ops.convert_to_tensor, (self._low, self._slope, self._start, self._steps)
        )
        place = ops.cast(ops.minimum(update.step - start, steps - 1), "float32")
        is_active = ops.convert_to_tensor(self._is_active) > 0
        # Place 0 while the rule is not active: a large place would give an infinite rate.
        place = ops.where(is_active, place, 0.0)
        rate = low * ops.exp(slope * place)
        return {"learning_rate": ops.where(is_active, rate, update.number("learning_rate"))}

    def release(self):
        self._is_active.assign(0.0)
