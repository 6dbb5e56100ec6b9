"""What all schedules have in common."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

NUMBERS = (int, float, list, tuple, np.ndarray, np.generic)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A number for each step: a learning rate, a momentum or any other.

    Schedules are frozen dataclasses. A subclass defines `value`, and `check` where arguments may be
    wrong; it compares, prints and saves itself by its fields.

    Call args:
        step: How many updates were made before, >= 0: a number, a list or NumPy array of numbers,
            or a tensor or variable. On tensors steps are exact up to 2^24.

    Returns:
        Of a number a float, of a list or array an array, computed in NumPy float64; of a tensor a
        float32 tensor, also in compiled functions. The shape is that of `step`.

    Raises:
        ValueError: If `step` is a bool, or a number that is negative or not finite.

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
            found = self.value(_read(step), np)
            return float(found) if np.ndim(found) == 0 else found
        return self.value(ops.cast(ops.convert_to_tensor(step), "float32"), ops)

    def value(self, t, xp):
        """The number at a step.

        Args:
            t: The step, a float64 array or a float32 tensor of any shape.
            xp: The namespace of functions for it, NumPy or `keras.ops`.

        Returns:
            As `t`.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raises ValueError if an argument is out of range."""

    def get_config(self):
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}


def _read(step):
    """float64 steps."""
    t = np.asarray(step)
    if t.dtype.kind not in "iuf" or not np.all(np.isfinite(t) & (t >= 0)):
        raise ValueError(f"A step must be a finite number >= 0, no bool; received: step={step!r}")
    return t.astype(np.float64)


def _plain(value: Any) -> Any:
    """Python's numbers for NumPy's, tuples for lists."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
