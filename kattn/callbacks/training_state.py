"""What a training is made of besides its program: read, set, and told from that of another."""

import itertools
import random
import re

import keras
import numpy as np
from keras import ops

from kattn import backend
from kattn.callbacks.optimizer_hook import RuleCallback

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
    """All that a step changes, by what it belongs to."""
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def read(model_variables):
    """Values as NumPy arrays of their own: JAX gives its buffers away, torch changes them."""
    return [np.array(ops.convert_to_numpy(v), copy=True) for v in model_variables]


def assign(name, model_variables, arrays):
    """Set variables to what `read` has returned for them.

    Raises:
        ValueError: If they are others.
    """
    here = [tuple(variable.shape) for variable in model_variables]
    saved = [array.shape for array in arrays]
    if here != saved:
        difference = _difference(name, saved, here)
        raise ValueError(f"The variables must be those of the backup: {difference}")
    for variable, array in zip(model_variables, arrays, strict=True):
        variable.assign(array)


def build_metrics(model, batch):
    """Have the variables of metrics made, which TensorFlow makes while it traces the first step.

    It changes the state of the model, which is to be set afterwards.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    prediction = model(x, training=False)
    model.compute_loss(x, y, prediction, sample_weight, training=False)
    model.compute_metrics(x, y, prediction, sample_weight=sample_weight)


def random_state():
    """Of the generators that Python, NumPy and the framework have for all."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - what Keras draws from
        "backend": backend.random_state(),
    }


def set_random_state(state):
    """Set what `random_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    backend.set_random_state(state["backend"])


def check_callback(callback):
    """Refuse a callback whose state is not known.

    Raises:
        ValueError: If it is not one of those that `state_of` knows.
    """
    known = [kind.__name__ for kind in ATTRIBUTES]
    if not _has_state(callback) and not isinstance(callback, (RuleCallback, *ATTRIBUTES)):
        raise ValueError(
            f"callbacks must be kattn's, have get_state() and set_state(state), or be of {known}; "
            f"one that keeps no state is not given here: callback={callback!r}"
        )
    if not _has_state(callback) and not isinstance(callback, RuleCallback):
        if type(callback) not in ATTRIBUTES:
            raise ValueError(
                f"callbacks must be of {known} themselves: a class made from one needs "
                f"get_state() and set_state(state): callback={callback!r}"
            )
        if getattr(callback, "save_freq", "epoch") != "epoch":
            raise ValueError(
                "ModelCheckpoint must save at the ends of epochs, as it would also save in steps "
                f"that are skipped: save_freq={callback.save_freq!r}"
            )


def state_of(callback):
    """What a callback has to know to go on."""
    if _has_state(callback):
        return callback.get_state()
    # A RuleCallback without a state has all of it in the optimizer's variables.
    return {name: getattr(callback, name) for name in ATTRIBUTES.get(type(callback), ())}


def set_state(callback, state):
    """Set what `state_of` has returned."""
    if _has_state(callback):
        callback.set_state(state)
    else:
        for name, value in state.items():
            setattr(callback, name, value)


def rule_owners(optimizer):
    """The kattn callbacks that act in the updates of an optimizer."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    hook = vars(optimizer).get("_kattn_hook")
    owners = [] if hook is None else [rule.owner for rule in hook.rules]
    return [owner for owner in owners if owner is not None]


def origin(model, callbacks, data, steps):
    """What a backup must have in common with the training that goes on from it.

    Args:
        model: The model.
        callbacks: Those whose state is saved.
        data: What has `set_epoch`, or None.
        steps: Of an epoch, or None if that is not known.
    """
    return {
        "keras": keras.__version__.split(".")[0],
        "backend": keras.backend.backend(),
        "optimizer": _class_of(model.optimizer),
        "steps": steps,
        "steps_per_execution": getattr(model, "steps_per_execution", 1),
        "callbacks": [type(callback).__name__ for callback in callbacks],
        "data": data.get_config() if hasattr(data, "get_config") else type(data).__name__,
        "shuffling_seed": backend.shuffling_seed() if data is None else None,
        "model_variables": [_label(variable) for variable in model.variables],
        "optimizer_variables": [_label(variable) for variable in model.optimizer.variables],
    }


def differences(saved, here):
    """In what two origins differ, as a text that is empty if they do not."""
    texts = [_difference(name, saved.get(name), here[name]) for name in here]
    return "; ".join(text for text in texts if text)


def _difference(name, saved, here):
    if saved == here:
        return ""
    if isinstance(saved, list) and isinstance(here, list):
        pairs = enumerate(itertools.zip_longest(saved, here))
        place, (first, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        return (
            f"{name}[{place}]={first!r} in the backup, {other!r} here "
            f"(of {len(saved)} and {len(here)})"
        )
    return f"{name}={saved!r} in the backup, {here!r} here"


def _has_state(callback):
    return all(callable(getattr(callback, name, None)) for name in ("get_state", "set_state"))


def _class_of(optimizer):
    inner = getattr(optimizer, "inner_optimizer", None)
    name = type(optimizer).__name__
    return name if inner is None else f"{name}({_class_of(inner)})"


def _label(variable):
    """Path, shape and dtype; without the numbers that Keras counts up in names in a process."""
    path = re.sub(r"_\d+(?![^/_])", "", variable.path)
    return f"{path} {list(variable.shape)} {keras.backend.standardize_dtype(variable.dtype)}"
