"""The residual connection around one part of a block: what the part reads, and how it joins."""

from typing import Any

import keras

from kattn.layers.transformer.drop_path import DropPath
from kattn.layers.transformer.layer_scale import LayerScale
from kattn.layers.transformer.norms import new_norm, normalize

PLACEMENTS = ("pre", "post", "sandwich", "parallel")


class Residual(keras.layers.Layer):
    """x + f(norm(x)), norm(x + f(x)) or x + norm(f(norm(x))), around a part f of a block.

    What f gives passes dropout, a `LayerScale` and a `DropPath`, as far as they are asked for.

    Args:
        placement: Where the norms stand, one of `PLACEMENTS`. With "parallel" there is none here,
            as all parts of the block read the same.
        norm: What `read_norm` returned.
        scale: Number that x is multiplied by before f(x) is added.
        dropout: Fraction of the channels of f(x) that are dropped during training.
        drop_path: Fraction of the items for which f is skipped during training.
        layer_scale: Number that the gains of f(x) start at, or None for no gains.
        seed: Integer seed of what is dropped, or None.
        **kwargs: `name` and `dtype`.
    """

    def __init__(self, *, placement, norm, scale, dropout, drop_path, layer_scale, seed, **kwargs):
        super().__init__(**kwargs)
        self.placement = placement
        self.scale = scale
        policy = {"dtype": self.dtype_policy}
        self._norm: Any = None
        self._output_norm: Any = None
        if placement != "parallel":
            self._norm = new_norm(norm, "norm", self.dtype_policy)
        if placement == "sandwich":
            self._output_norm = new_norm(norm, "output_norm", self.dtype_policy)
        self._dropout = keras.layers.Dropout(dropout, seed=seed, **policy) if dropout else None
        self._layer_scale = None
        if layer_scale is not None:
            self._layer_scale = LayerScale(layer_scale, name="layer_scale", **policy)
        # Else the items that are skipped would follow from the channels that are dropped.
        next_seed = None if seed is None else seed + 1
        self._drop_path = DropPath(drop_path, seed=next_seed, **policy) if drop_path else None

    def build(self, x_shape):
        for part in self._parts():
            part.build(x_shape)
        self.built = True

    def read(self, x, *, training=None):
        """What the part reads of the block's x."""
        return x if self.placement == "post" else normalize(self._norm, x, training)

    def join(self, x, y, *, training):
        """The block's x after the part, which gave y. It is no `call`, which would cost more."""
        if self._output_norm is not None:
            y = normalize(self._output_norm, y, training)
        for change in (self._dropout, self._drop_path):
            y = y if change is None else change(y, training=training)
        if self._layer_scale is not None:
            y = self._layer_scale(y)
        x = x + y if self.scale == 1 else self.scale * x + y
        return normalize(self._norm, x, training) if self.placement == "post" else x

    def _parts(self):
        parts = self._norm, self._output_norm, self._dropout, self._layer_scale, self._drop_path
        return [part for part in parts if part is not None]
