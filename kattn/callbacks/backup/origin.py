"""What a backup and the training that goes on from it must have in common."""

import itertools
import re

import keras

from kattn import backend
from kattn.callbacks.backup import holdings


def origin(model, callbacks, data, steps):
    """Return what identifies a training, as a dict of plain values.

    Args:
        model: The compiled model.
        callbacks: The callbacks whose state is saved.
        data: The data if it has `set_epoch`, or None.
        steps: Number of steps of an epoch, or None if it is not known.
    """
    return {
        "keras": keras.__version__.split(".")[0],
        "backend": keras.backend.backend(),
        "optimizers": [_class_of(optimizer) for optimizer in holdings.optimizers(model)],
        "steps": steps,
        "steps_per_execution": getattr(model, "steps_per_execution", 1),
        "callbacks": [type(callback).__name__ for callback in callbacks],
        "data": data.get_config() if hasattr(data, "get_config") else type(data).__name__,
        "shuffling_seed": backend.shuffling_seed() if data is None else None,
        "model_variables": [_label(variable) for variable in holdings.variables(model)],
        "optimizer_variables": [_label(v) for v in holdings.optimizer_variables(model)],
    }


def differences(saved, here):
    """Return in what two origins differ, as a text. It is empty if they are equal."""
    texts = [difference(name, saved.get(name), here[name]) for name in here]
    return "; ".join(text for text in texts if text)


def difference(name, saved, here):
    """Return in what two values differ, as a text. It is empty if they are equal.

    Args:
        name: Name of the value.
        saved: The value in the backup.
        here: The value of the training at hand. Of two lists the first difference is named.
    """
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


def _class_of(optimizer):
    inner = getattr(optimizer, "inner_optimizer", None)
    name = type(optimizer).__name__
    return name if inner is None else f"{name}({_class_of(inner)})"


def _label(variable):
    """Path, shape and dtype; without the numbers that Keras counts up in names in a process."""
    path = re.sub(r"_\d+(?![^/_])", "", variable.path)
    return f"{path} {list(variable.shape)} {keras.backend.standardize_dtype(variable.dtype)}"
