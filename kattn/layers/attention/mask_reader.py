"""Reading Keras's implicit masks, and making mask objects of what a layer is given."""

import keras

from kattn import masks


class MaskReader(keras.layers.Layer):
    """Finds the mask that Keras keeps for a tensor, by the one way that holds under tracing.

    Keras gives a layer its input's mask as the argument `mask` unless the caller gave one; so a
    layer whose caller did asks this one, which has no other caller.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        return x if mask is None else mask

    def compute_mask(self, x, previous_mask):
        return None

    def read(self, x):
        """The mask of `x`, or None."""
        if isinstance(x, keras.KerasTensor):
            return getattr(x, "_keras_mask", None)
        found = self(x)
        return found if len(found.shape) < len(x.shape) else None


class MaskWriter(keras.layers.Layer):
    """Sets the mask that Keras keeps for a tensor: that of a layer's output is its `mask`."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        return x

    def write(self, x, mask):
        """`x`, which now has this mask, if any."""
        return x if mask is None else self(x, mask=mask)


def padding_of(mask):
    """`mask` if it is a bool array of rank 2, (B, T) padding; else None."""
    return mask if len(getattr(mask, "shape", ())) == 2 else None


def score_mask(mask, name, axes):
    """A mask object of a layer's argument: padding of rank 2, or of rank 3 or 4, or an object."""
    if mask is None or isinstance(mask, masks.Mask):
        return mask
    rank = len(getattr(mask, "shape", ()))
    if rank == 2:
        return masks.Padding(mask)
    if rank == 3:
        return masks.Dense(mask[:, None])
    if rank == 4:
        return masks.Dense(mask)
    raise ValueError(
        f"`{name}` must be a kattn.masks.Mask or a bool array {axes}; "
        f"received: {name}={mask if rank == 0 else f'array of shape {tuple(mask.shape)}'}"
    )
