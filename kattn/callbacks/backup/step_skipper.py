"""Steps that read their data and do not train."""

import keras


class StepSkipper:
    """Takes the place of a model's training step, to read batches without training on them.

    Args:
        model: The model that is in `fit`.
        steps: How many steps one call of the training step joins.
        logs: What each skipped call returns as its logs, a dict of numbers.
        see: Function that is called with the last batch of each skipped call; not on PyTorch, where
            Keras reads the data elsewhere.

    Attributes:
        skips_next: Whether the next call is to be skipped. Each skipped call sets it to False.
    """

    def __init__(self, model, steps, logs, see):
        self.skips_next = False
        self._model, self._steps, self._logs, self._see = model, steps, logs, see
        self._history = model.history  # each fit has a history of its own
        self._function = model.train_function
        model.train_function = self

    def __call__(self, *arguments):
        if not self.skips_next or self._model.history is not self._history:
            # An exception ended the fit that was to skip.
            return self._function(*arguments)
        self.skips_next = False
        if keras.backend.backend() == "torch":
            return dict(self._logs)
        *state, iterator = arguments
        for _ in range(self._steps):
            batch = next(iterator)
        self._see(batch)
        return (dict(self._logs), *state) if state else dict(self._logs)

    def remove(self):
        """Put the training step back, unless another one has taken the place since."""
        if self._model.train_function is self:
            self._model.train_function = self._function
