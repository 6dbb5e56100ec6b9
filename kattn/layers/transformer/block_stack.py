"""Transformer blocks one behind the other: the body of a model."""

import keras

from kattn.layers.attention.mask_reader import read_new_masks, read_padding, set_keras_mask
from kattn.layers.transformer.norms import new_norm


class BlockStack(keras.layers.Layer):
    """Blocks, each of which reads what the one before it gave, and the norm behind the last.

    Args:
        blocks: List of `TransformerEncoderBlock` or `TransformerDecoderBlock`.
        norm: What `read_norm` returned, for the norm behind the last block. None for no norm.
        **kwargs: `name` and `dtype`.
    """

    def __init__(self, blocks, norm=None, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.blocks = blocks
        self._norm = None if norm is None else new_norm(norm, "norm", self.dtype_policy)

    def build(self, x_shape, context_shape=None):
        shapes = (x_shape,) if context_shape is None else (x_shape, context_shape)
        for block in self.blocks:
            block.build(*shapes)
        if self._norm is not None:
            self._norm.build(x_shape)
        self.built = True

    def call(self, x, context=None, mask=None, training=None):
        sequences = () if context is None else (context,)
        for block in self.blocks:
            x = block(x, *sequences, mask=mask, training=training)
        return self._normalize(x)  # (B, T, C)

    def compute_mask(self, x, previous_mask):
        """Padding of the input is padding of the output, whatever else is given."""
        return read_padding(x, previous_mask, query_by_key=True)

    def compute_output_shape(self, x_shape, context_shape=None):
        return x_shape

    def init_cache(self, batch_size, length, context=None):
        """A tuple of the caches of the blocks; `context` may have a Keras mask."""
        return tuple(block.init_cache(batch_size, length, context) for block in self.blocks)

    def decode(self, x, cache, mask=None):
        """The output for new steps `(B, t, C)`, and the cache after them."""
        x, padding, allowed = read_new_masks(x, mask)
        caches = []
        for block, own in zip(self.blocks, cache, strict=True):
            x, own = block.decode(set_keras_mask(x, padding), own, mask=allowed)
            caches.append(own)
        return self._normalize(x), tuple(caches)

    def _normalize(self, x):
        return x if self._norm is None else self._norm(x)
