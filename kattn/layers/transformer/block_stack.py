"""Transformer blocks one behind the other: the body of a model."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.mask_reader import read_new_masks, read_padding, set_keras_mask
from kattn.layers.transformer.norms import new_norm


class BlockStack(keras.layers.Layer):
    """Blocks, each of which reads what the one before it gave, and the norm behind the last.

    Args:
        blocks: List of `TransformerEncoderBlock` or `TransformerDecoderBlock`.
        norm: What `read_norm` returned, for the norm behind the last block. None for no norm.
        memory_length: Number of steps M of earlier calls that each block reads before those of a
            call. None for no memory. With it the batch size must be known and stay the same.
        **kwargs: `name` and `dtype`.

    Attributes:
        memory: Variables that hold what each block read in the last M steps, `(B, M, C)`, and last
            which of them are real, `(B, M)`; none without a memory.
    """

    def __init__(self, blocks, norm=None, memory_length=None, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.blocks = blocks
        self.memory_length = memory_length
        self.memory = []
        self._norm = None if norm is None else new_norm(norm, "norm", self.dtype_policy)

    def build(self, x_shape, context_shape=None):
        shapes = (x_shape,) if context_shape is None else (x_shape, context_shape)
        for block in self.blocks:
            block.build(*shapes)
        if self._norm is not None:
            self._norm.build(x_shape)
        if self.memory_length is not None:
            self._build_memory(x_shape)
        self.built = True

    def call(self, x, context=None, mask=None, training=None):
        if self.memory:
            return self._normalize(self._behind_memory(x, mask, training))
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

    def reset_memory(self):
        """Forgets all earlier steps."""
        for variable in self.memory:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def save_own_variables(self, store):
        """Nothing: what a memory holds belongs to a text and a batch size, not to the model."""

    def load_own_variables(self, store):
        """Nothing, as nothing was saved."""

    def _build_memory(self, x_shape):
        batch, _, width = x_shape
        if batch is None:
            raise arguments.error(
                "The batch size must be known where there is a memory: train on whole batches of "
                "one size, or build the model with it",
                batch_size=None,
                memory_length=self.memory_length,
            )
        shape, dtype = (batch, self.memory_length), self.compute_dtype
        self.memory = [
            *(
                self._variable(f"memory{i}", (*shape, width), dtype)
                for i in range(len(self.blocks))
            ),
            self._variable("memory_is_real", shape, "bool"),
        ]

    def _variable(self, name, shape, dtype):
        return self.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer="zeros",
            trainable=False,
            autocast=False,
        )

    def _behind_memory(self, x, mask, training):
        """What the last block gives; every block reads the memory first, and then renews it."""
        padding = read_padding(x, mask, query_by_key=True)
        if x.shape[0] not in (None, self.memory[-1].shape[0]):
            raise arguments.error(
                "The batch size must be that of the memory",
                **{"x.shape": tuple(x.shape), "memory": tuple(self.memory[0].shape)},
            )
        # Copies, as PyTorch writes variables in place, and the gradient needs what was there.
        *memories, is_real = [ops.copy(ops.convert_to_tensor(x)) for x in self.memory]
        for block, variable, memory in zip(self.blocks, self.memory, memories, strict=False):
            self._keep(variable, memory, x)
            x = block(x, mask=mask, memory=memory, memory_mask=is_real, training=training)
        new = ops.ones_like(x[..., 0], "bool") if padding is None else padding
        self._keep(self.memory[-1], is_real, new)
        return x

    def _keep(self, variable, memory, new):
        """The last M steps of those that were kept and of new ones."""
        new = ops.cast(ops.stop_gradient(new), memory.dtype)
        variable.assign(ops.concatenate([memory, new], axis=1)[:, -self.memory_length :])

    def _normalize(self, x):
        return x if self._norm is None else self._norm(x)
