"""Numbers of an optimizer, replaced while it makes one update."""

import contextlib

from keras import ops

from kattn import backend


@contextlib.contextmanager
def replaced_attributes(optimizer, numbers):
    """Give attributes of an optimizer other values for the length of a block.

    Args:
        optimizer: A Keras optimizer.
        numbers: Scalar tensors by the name of the attribute. Names that are no attributes of the
            instance are left out: the learning rate and thresholds are handed over elsewhere.
    """
    names = [name for name in numbers if name in vars(optimizer)]
    before = {name: getattr(optimizer, name) for name in names}
    try:
        for name in before:
            value = backend.attribute(numbers[name])
            if name == "momentum":  # Keras asks in Python whether there is any
                value = _Nonzero(value) if ops.is_tensor(value) else _NonzeroFloat(value)
            object.__setattr__(optimizer, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(optimizer, name, value)


class _NonzeroFloat(float):
    """A number that denies being 0, so that Keras computes the velocity even if it is."""

    def __ne__(self, other):
        return True

    def __gt__(self, other):
        return True

    __hash__ = float.__hash__


class _Nonzero:
    """A traced number that Python may compare with 0, and frameworks read as a tensor."""

    def __init__(self, value):
        self._value = value
        self.dtype = value.dtype
        self.shape = value.shape

    def __jax_array__(self):
        return self._value

    def __tf_tensor__(self, dtype=None, name=None):
        return self._value if dtype is None else ops.cast(self._value, dtype)

    def __ne__(self, other):
        return True

    def __gt__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]
