"""All that a model holds of a training, also what Keras's own lists leave out."""

from collections.abc import Mapping

import keras


def optimizers(model):
    """Return the optimizers that a model and its parts hold in attributes, `model.optimizer` first.

    An optimizer within another one, which scales the loss for example, does not count.
    """
    own = getattr(model, "optimizer", None)
    found = {id(own): own} if isinstance(own, keras.optimizers.Optimizer) else {}
    for value in _held(model, keras.optimizers.Optimizer):
        found.setdefault(id(value), value)
    return list(found.values())


def optimizer_variables(model):
    """Return the variables of all these optimizers, one after the other."""
    return [variable for optimizer in optimizers(model) for variable in optimizer.variables]


def variables(model):
    """Return `model.variables`, and behind them those in attributes which these leave out.

    Such as the states of a stateful recurrent layer. Variables of optimizers and of metrics are not
    among them.
    """
    found = {id(variable): variable for variable in model.variables}
    for value in _held(model, keras.Variable):
        found.setdefault(id(value), value)
    return list(found.values())


def _held(model, kind):
    """What is of a kind in attributes of a model and its parts, and in lists and dicts there."""
    for part in model._flatten_layers():
        for name, value in vars(part).items():
            if not name.startswith("_self_"):  # TensorFlow's books, of what was there once, too
                yield from _members(value, kind)


def _members(value, kind):
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _members(each, kind)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _members(each, kind)
