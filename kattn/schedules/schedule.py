"""The base class of schedules."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from kattn.arguments import error

NUMBERS = (int, float, list, tuple, np.ndarray, np.generic)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Base class of schedules: a number for each step.

    Schedules are frozen dataclasses, and are compared, printed and saved by their fields. Override
    `value`, and `check` to check the arguments.

    Call args:
        step: Number of updates made before, >= 0: a number, a list or NumPy array of numbers, or a
            tensor or variable. Steps in tensors are exact up to 2^24.

    Returns:
        The value at each step, in the shape of `step`: a float for a number, and an array for a
        list or array, both computed by NumPy in float64; a float32 tensor for a tensor, in compiled
        functions, too.

    Raises:
        ValueError: If `step` is a bool, or has a number that is negative or not finite.

    Example:
        >>> @keras.saving.register_keras_serializable("example")
        ... @dataclasses.dataclass(frozen=True)
        ... class Halving(kattn.schedules.Schedule):
        ...     start: float
        ...
        ...     def value(self, t, xp):
        ...         return self.start * 0.5**t
        >>> Halving(8.0)(2)
        2.0
        >>> optimizer = keras.optimizers.SGD(Halving(8.0))
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        self.check()

    def __call__(self, step):
        if isinstance(step, NUMBERS):
            values = self.value(_read(step), np)
            return float(values) if np.ndim(values) == 0 else values
        return self.value(ops.cast(ops.convert_to_tensor(step), "float32"), ops)

    def value(self, t, xp):
        """Return the value at each step.

        Args:
            t: Steps, a float64 array or a float32 tensor of any shape.
            xp: Namespace of the functions to compute with: NumPy for an array, `keras.ops` for a
                tensor.

        Returns:
            Values in the type and shape of `t`.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError if an argument is out of range."""

    def get_config(self):
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}


def _read(step):
    """Steps as a float64 array."""
    t = np.asarray(step)
    if t.dtype.kind not in "iuf" or not np.all(np.isfinite(t) & (t >= 0)):
        raise error("A step must be a finite number >= 0 and no bool", step=step)
    return t.astype(np.float64)


def _plain(value: Any) -> Any:
    """The value with numbers of Python in place of those of NumPy, and tuples in place of lists."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
