"""Functions of the step that run inside the compiled step, even if they cannot be traced."""

import keras
import numpy as np
from keras import ops

from kattn import backend
from kattn.arguments import error

TABLE = 4096  # steps that are tabulated at a time
PROBES = (0, 1, 2, 10, 1000)  # steps at which a traced function is compared with the plain one


class StepFunction:
    """A user's function of the number of updates so far, for use in a `Rule`.

    A function that cannot be traced, as it branches on the step or uses `math`, is tabulated on the
    host instead.

    Args:
        function: Function that takes an int or a float32 tensor and returns a number.
        argument: Name of the argument that the user gave the function as, for messages.

    Raises:
        ValueError: If it is not a function, or does not return one number for step 0.
    """

    def __init__(self, function, argument):
        if not callable(function):
            raise error(
                f"`{argument}` must be a function of the step, as those of kattn.schedules are",
                **{argument: function},
            )
        self._function, self._argument = function, argument
        self.is_traced = _can_be_traced(function)
        self._evaluate(0)

    def build(self, hook):
        """Make the variables that the function needs. To be called in `Rule.build`."""
        if not self.is_traced:
            self._table = hook.add_variable((TABLE,), f"{self._argument}_table", stays=True)
            name = f"{self._argument}_start"
            self._start = hook.add_variable((), name, dtype="int32", stays=True)

    def tabulate(self, first):
        """Compute the values of `TABLE` steps from step `first` on, on the host.

        Call it again before the steps are used up. For a function that is traced it does nothing.
        """
        if not self.is_traced:
            self._table.assign(
                np.array([self._evaluate(first + i) for i in range(TABLE)], "float32")
            )
            self._start.assign(first)

    def __call__(self, step):
        """Return the value at a step, float32, inside the compiled step."""
        if self.is_traced:
            # float32: TensorFlow does not multiply an integer by 0.1.
            return ops.cast(self._function(ops.cast(step, "float32")), "float32")
        place = step - ops.convert_to_tensor(self._start)
        return ops.take(ops.convert_to_tensor(self._table), ops.clip(place, 0, TABLE - 1))

    def _evaluate(self, step):
        value = self._function(step)
        if np.ndim(value) != 0 or isinstance(value, (str, bytes)) or value is None:
            raise error(
                f"`{self._argument}` must return one number for a step",
                **{f"{self._argument}({step})": value},
            )
        return float(value)


def _can_be_traced(function):
    """Whether a function gives the same for tensors, traced or not, as for numbers."""
    try:
        function(keras.KerasTensor((), "float32"))
        if not backend.can_trace(function):
            return False
        pairs = [(function(ops.convert_to_tensor(float(t))), function(t)) for t in PROBES]
        traced, plain = np.array([[float(a), float(b)] for a, b in pairs]).T
    except (TypeError, ValueError, AttributeError, LookupError):  # a tensor has no value or hash
        return False
    return bool(np.allclose(traced, plain, rtol=1e-4, atol=0.0, equal_nan=True))
