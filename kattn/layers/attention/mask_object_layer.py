"""How a mask object that holds symbolic tensors gets into a functional model."""

import keras

from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.masks import Mask
from kattn.ops import masking


class MaskObjectLayer(QuantizableLayer):
    """Base of the layers whose mask may be a `kattn.masks.Mask`.

    Keras looks for symbolic tensors among the arguments of a call, and does not find those that a
    mask object holds. So a functional model keeps such an object in two parts: the rule without its
    arrays in the argument of the mask, and the arrays in the argument `mask_arrays`, which the
    `call` of every subclass must have. When the model runs, the two are put together again before
    `call` is reached, which therefore never sees the arrays.
    """

    def __call__(self, *args, **kwargs):
        if any(isinstance(x, keras.KerasTensor) for x in (*args, *kwargs.values())):
            kwargs = _apart(kwargs)
        elif kwargs.get("mask_arrays") is not None:
            kwargs = _together(**kwargs)
        return super().__call__(*args, **kwargs)


def _apart(arguments):
    """The arguments of a call: of mask objects with arrays the rules, and the arrays beside."""
    held = sorted(name for name, x in arguments.items() if isinstance(x, Mask))
    arrays = [array for name in held for array in masking.arrays_of(arguments[name])]
    if all(array is None for array in arrays):
        return arguments
    rules = {name: masking.without_arrays(arguments[name]) for name in held}
    return {**arguments, **rules, "mask_arrays": arrays}


def _together(*, mask_arrays, **arguments):
    """The way back."""
    remaining = iter(mask_arrays)
    held = sorted(name for name, x in arguments.items() if isinstance(x, Mask))
    masks = {name: masking.with_arrays(arguments[name], remaining) for name in held}
    return {**arguments, **masks}
