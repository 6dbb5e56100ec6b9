"""Variables that hold what a layer carries from one call to the next."""

from typing import Any

import keras
from keras import ops

from kattn import arguments


class SegmentKeeper(keras.layers.Layer):
    """The memory of a layer between its calls: `kattn.callbacks.ResetMemory` knows it as such.

    Args:
        memory_length: Number of steps that are remembered.
        **kwargs: `name` and `dtype`.

    Attributes:
        memory: Variables for the leaves of the memory; none before `build_for`.
    """

    def __init__(self, memory_length, **kwargs):
        super().__init__(**kwargs)
        self.memory_length = memory_length
        self.memory = []
        self._first: Any = None

    def build_for(self, batch_size, first):
        """Makes the variables, for a batch size: `first(batch_size)` is what they hold at first."""
        if batch_size is None:
            raise arguments.error(
                "The batch size must be known where there is a memory: train on whole batches of "
                "one size, or build the model with it",
                batch_size=None,
                memory_length=self.memory_length,
            )
        self._batch_size, self._first = batch_size, first
        self.memory = [
            self.add_weight(
                name=f"memory{i}",
                shape=tuple(x.shape),
                dtype=keras.backend.standardize_dtype(x.dtype),
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            for i, x in enumerate(keras.tree.flatten(first(batch_size)))
        ]
        self.built = True

    def read(self, x):
        """What is remembered, for the items of a batch x."""
        if x.shape[0] not in (None, self._batch_size):
            raise arguments.error(
                "The batch size must be that of the memory",
                **{"x.shape": tuple(x.shape), "batch_size": self._batch_size},
            )
        # Copies, as PyTorch writes variables in place, and the gradient needs what was there.
        leaves = [ops.copy(ops.convert_to_tensor(variable)) for variable in self.memory]
        return keras.tree.pack_sequence_as(self._first(self._batch_size), leaves)

    def write(self, memory):
        """Remembers something else."""
        for variable, x in zip(self.memory, keras.tree.flatten(memory), strict=True):
            variable.assign(ops.cast(ops.stop_gradient(x), variable.dtype))

    def reset_memory(self):
        """Forgets all earlier steps."""
        for variable in self.memory:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def save_own_variables(self, store):
        """Nothing: what is remembered belongs to a text and a batch size, not to the model."""

    def load_own_variables(self, store):
        """Nothing, as nothing was saved."""
