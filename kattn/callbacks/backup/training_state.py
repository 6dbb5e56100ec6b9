"""What a training depends on besides its program: variables, random numbers, callbacks."""

import contextlib
import random

import keras
import numpy as np

from kattn import backend
from kattn.arguments import error
from kattn.callbacks.backup import holdings
from kattn.callbacks.backup.origin import difference
from kattn.callbacks.update.hooks import existing_hook
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.values import assign

# Attributes of Keras's own callbacks that change while they train.
ATTRIBUTES = {
    keras.callbacks.EarlyStopping: (
        "wait",
        "stopped_epoch",
        "best",
        "best_epoch",
        "best_weights",
    ),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    keras.callbacks.ModelCheckpoint: ("best",),
}


def variables(model):
    """Return all variables that a step changes, as lists by what they belong to."""
    return {
        "model": holdings.variables(model),
        "optimizer": holdings.optimizer_variables(model),
        "metrics": model.metrics_variables,
    }


def trained_weights(model):
    """Return what `build_optimizers` needs: for each optimizer the places of its weights.

    A list for each optimizer, with places in the list of the variables that the model holds; None
    for an optimizer that has not been built, or that has weights which the model does not hold.
    """
    place = {id(variable): i for i, variable in enumerate(holdings.variables(model))}
    found = []
    for optimizer in holdings.optimizers(model):
        places = [place.get(id(v)) for v in optimizer._trainable_variables]
        found.append(places if optimizer.built and None not in places else None)
    return found


def build_optimizers(model, places):
    """Build the optimizers that were built when a backup was made, and are not built here.

    An optimizer besides `model.optimizer` is built by the first step, so that there would be
    nothing to restore its state in.

    Args:
        model: The model.
        places: What `trained_weights` returned.
    """
    variables = holdings.variables(model)
    for optimizer, weights in zip(holdings.optimizers(model), places, strict=False):
        is_known = weights is not None and all(i < len(variables) for i in weights)
        if is_known and not optimizer.built:
            optimizer.build([variables[i] for i in weights])


def set_variables(name, model_variables, arrays):
    """Set variables to the arrays of a backup.

    Args:
        name: What the variables belong to, for the message.
        model_variables: List of variables.
        arrays: List of NumPy arrays, one for each variable.

    Raises:
        ValueError: If the shapes are not those of the variables.
    """
    shapes = [tuple(variable.shape) for variable in model_variables]
    saved = [array.shape for array in arrays]
    if shapes != saved:
        raise error(
            f"The variables must be those of the backup, but {difference(name, saved, shapes)}",
            variables=name,
        )
    assign(model_variables, arrays)


def build_metrics(model, batch):
    """Have the variables of metrics made. TensorFlow makes them while it traces the first step.

    This changes the state of the model, which must be set afterwards.

    Args:
        model: The compiled model.
        batch: A batch as `fit` reads it.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    prediction = model(x, training=False)
    model.compute_loss(x, y, prediction, sample_weight, training=False)
    model.compute_metrics(x, y, prediction, sample_weight=sample_weight)


def random_state():
    """Return the state of the global random generators of Python, NumPy and the framework."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - what Keras draws from
        "backend": backend.random_state(),
    }


def set_random_state(state):
    """Set the global random generators to what `random_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    backend.set_random_state(state["backend"])


def check_callback(callback):
    """Raise ValueError for a callback whose state is not known to `state_of`."""
    if _has_state(callback) or isinstance(callback, RuleCallback):
        return
    kinds = [kind.__name__ for kind in ATTRIBUTES]
    if not isinstance(callback, tuple(ATTRIBUTES)):
        raise error(
            "`callbacks` must be those of kattn, have get_state() and set_state(state), or be one "
            f"of {', '.join(kinds)}; leave out callbacks that keep no state",
            callback=callback,
        )
    if type(callback) not in ATTRIBUTES:
        raise error(
            f"`callbacks` must be of the classes {', '.join(kinds)} themselves; a subclass needs "
            "get_state() and set_state(state)",
            callback=callback,
        )
    save_freq = getattr(callback, "save_freq", "epoch")
    if save_freq != "epoch":
        raise error(
            "A ModelCheckpoint must save at the ends of epochs, as it would otherwise save in "
            "steps that are skipped",
            save_freq=save_freq,
        )


def state_of(callback):
    """Return the state of a callback: what it has to know to go on."""
    if _has_state(callback):
        return callback.get_state()
    # A RuleCallback without get_state has all of its state in variables of the optimizer.
    return {name: getattr(callback, name) for name in ATTRIBUTES.get(type(callback), ())}


def set_state(callback, state):
    """Set a callback to the state that `state_of` has returned."""
    if _has_state(callback):
        callback.set_state(state)
    else:
        for name, value in state.items():
            setattr(callback, name, value)


def rule_owners(model):
    """Return the callbacks of kattn that act in the updates of the optimizers of a model."""
    hooks = [existing_hook(optimizer) for optimizer in holdings.optimizers(model)]
    owners = [rule.owner for hook in hooks if hook is not None for rule in hook.rules]
    return [owner for owner in owners if owner is not None]


@contextlib.contextmanager
def as_trained(model):
    """Give a model its weights as trained for a `with` block, if an average is in their place."""
    with contextlib.ExitStack() as stack:
        for owner in rule_owners(model):
            stack.enter_context(owner.as_trained())
        yield


def _has_state(callback):
    return all(callable(getattr(callback, name, None)) for name in ("get_state", "set_state"))
