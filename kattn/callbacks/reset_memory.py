"""When models with a memory of earlier calls forget them."""

import keras

from kattn.arguments import error
from kattn.callbacks.update import interruption
from kattn.callbacks.update.values import assign, copies


class ResetMemory(keras.callbacks.Callback):
    """Empties the memory of a model at the beginning of each epoch, validation and prediction.

    A `TransformerLM` with `memory_length` remembers the batches before. In an epoch they follow one
    another, as `kattn.text.streams` puts them; where another text begins, what is remembered must
    go. After a validation within `fit` the training goes on with what it remembered.

    Raises:
        ValueError: When training begins, if the model has no memory.

    Reference:
        Dai et al. 2019 (Transformer-XL), sec. 3.2, https://arxiv.org/abs/1901.02860

    Example:
        >>> position = kattn.layers.RotaryEmbedding()
        >>> model = kattn.models.TransformerLM(9, 1, 2, 8, position=position, memory_length=4)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile("adam", loss)
        >>> x, y = kattn.text.streams(np.arange(65) % 9, length=4, batch_size=2)
        >>> forget = kattn.callbacks.ResetMemory()
        >>> history = model.fit(x, y, 2, shuffle=False, callbacks=[forget], verbose=0)
    """

    def __init__(self):
        super().__init__()
        self._kept = None  # what the training remembers, while the model reads something else

    def on_train_begin(self, logs=None):
        interruption.watch(self)

    def on_train_end(self, logs=None):
        self.release()

    def release(self):
        """Let the model remember what the training does, if `fit` was interrupted meanwhile."""
        interruption.end(self)
        if self._kept:
            assign(self._memory(), self._kept)
            self._kept = None

    def on_epoch_begin(self, epoch, logs=None):
        if not self._with_memory():
            raise error(
                "The model must have a memory, such as TransformerLM(..., memory_length=64)",
                model=self.model.name,
            )
        self._reset()

    def on_test_begin(self, logs=None):
        self._kept = copies(self._memory())
        self._reset()

    def on_test_end(self, logs=None):
        if self._kept:
            assign(self._memory(), self._kept)
            self._kept = None
        else:  # the model had to be built for this
            self._reset()

    on_predict_begin, on_predict_end = on_test_begin, on_test_end

    def _with_memory(self):
        """The parts of the model that have a memory, be it not built yet."""
        return [
            part
            for part in self.model._flatten_layers()
            if hasattr(part, "memory") and getattr(part, "memory_length", None) is not None
        ]

    def _memory(self):
        return [variable for part in self._with_memory() for variable in part.memory]

    def _reset(self):
        for part in self._with_memory():
            part.reset_memory()
