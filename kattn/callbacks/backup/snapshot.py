"""The state of a model and its training, kept in memory to be put back."""

import keras

from kattn.callbacks.backup import holdings, training_state
from kattn.callbacks.update.values import copies


class Snapshot:
    """What a training changes, as it was when the snapshot was made.

    Args:
        model: A compiled model that has been built.
    """

    def __init__(self, model):
        self._values = _by_id(_variables(model))
        self._metrics = _by_id(_metrics_variables(model))
        self._history = getattr(model, "history", None)
        self._stop_training = model.stop_training
        self._random = training_state.random_state()
        compiled = (getattr(model, name, None) for name in ("_compile_metrics", "_compile_loss"))
        self._unbuilt = [each for each in compiled if each is not None and not each.built]

    def restore(self, model):
        """Put everything back. Variables that were made since then stay as they are."""
        _assign(_variables(model), self._values)
        model.reset_metrics()
        _assign(_metrics_variables(model), self._metrics)
        if self._history is not None:
            model.history = self._history
        elif getattr(model, "history", None) is not None:
            del model.history
        model.stop_training = self._stop_training
        if keras.backend.backend() != "tensorflow":
            # The first `fit` of a model draws an order of the data to make metrics: let it do so.
            for each in self._unbuilt:
                each.built = False
        training_state.set_random_state(self._random)


def _variables(model):
    return [*holdings.variables(model), *holdings.optimizer_variables(model)]


def _by_id(variables):
    return dict(zip(map(id, variables), copies(variables), strict=True))


def _assign(variables, values):
    for variable in variables:
        if id(variable) in values:
            variable.assign(values[id(variable)])


def _metrics_variables(model):
    return [variable for metric in model.metrics for variable in metric.variables]
