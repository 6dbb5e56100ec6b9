"""Functions of the step inside the compiled step, also those that cannot be traced."""

import keras
import numpy as np
from keras import ops

from kattn import backend

TABLE = 4096  # steps that are tabulated at a time
PROBES = (0, 1, 2, 10, 1000)


class StepFunction:
    """A user's function of the number of updates so far, for use in a `Rule`.

    Args:
        function: Takes an int or a float32 tensor, returns a number.
        argument: Whose value it is, for errors.

    Raises:
        ValueError: If it is not a function, or does not give one number.
    """

    def __init__(self, function, argument):
        if not callable(function):
            raise ValueError(
                f"{argument} must be a function of the step, as those of kattn.schedules are: "
                f"{argument}={function!r}"
            )
        self._function, self._argument = function, argument
        self.is_traced = _can_be_traced(function)
        self._evaluate(0)

    def build(self, hook):
        """Make the variables it needs."""
        if not self.is_traced:
            self._table = hook.add_variable((TABLE,), f"{self._argument}_table", stays=True)
            name = f"{self._argument}_start"
            self._start = hook.add_variable((), name, dtype="int32", stays=True)

    def tabulate(self, first):
        """On the host: values for `TABLE` steps from `first` on; due again after half of them."""
        if not self.is_traced:
            self._table.assign(
                np.array([self._evaluate(first + i) for i in range(TABLE)], "float32")
            )
            self._start.assign(first)

    def __call__(self, step):
        """In the compiled step: float32."""
        if self.is_traced:
            # float32: TensorFlow does not multiply an integer by 0.1.
            return ops.cast(self._function(ops.cast(step, "float32")), "float32")
        place = step - ops.convert_to_tensor(self._start)
        return ops.take(ops.convert_to_tensor(self._table), ops.clip(place, 0, TABLE - 1))

    def _evaluate(self, step):
        value = self._function(step)
        if np.ndim(value) != 0 or isinstance(value, (str, bytes)) or value is None:
            raise ValueError(
                f"{self._argument} must give one number for a step: "
                f"{self._argument}({step})={value!r}"
            )
        return float(value)


def _can_be_traced(function):
    """Whether it makes of a tensor, traced or not, what it makes of a number."""
    try:
        function(keras.KerasTensor((), "float32"))
        if not backend.can_trace(function):
            return False
        pairs = [(function(ops.convert_to_tensor(float(t))), function(t)) for t in PROBES]
        found, expected = np.array([[float(a), float(b)] for a, b in pairs]).T
    except (TypeError, ValueError, AttributeError, LookupError):  # of what has no value, or hash
        return False
    return bool(np.allclose(found, expected, rtol=1e-4, atol=0.0, equal_nan=True))
