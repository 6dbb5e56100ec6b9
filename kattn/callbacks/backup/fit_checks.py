"""Whether a `fit` can be resumed, and from a backup. Each function raises ValueError if not."""

import keras

from kattn import backend
from kattn.arguments import error
from kattn.callbacks.backup import training_state
from kattn.callbacks.backup.origin import differences


def check_model(model):
    """The model must be built, and on one replica."""
    if not model.built:
        raise error(
            "The model must be built before fit: give it an Input, or call it on a batch",
            model=model.name,
            built=False,
        )
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if replicas > 1:
        raise error(
            "The model must be on one replica: under tf.distribute each replica has values of its "
            "own, which are not saved",
            num_replicas_in_sync=replicas,
        )


def check_callbacks(model, callbacks, params, late):
    """All callbacks with a state must be known, and come before `ExactResume`.

    Args:
        model: The model.
        callbacks: Callbacks whose state is saved.
        params: Parameters of this `fit`, a dict which all its callbacks have.
        late: Those of the callbacks that come after `ExactResume`.
    """
    for callback in callbacks:
        if callback.params is not params:
            raise error(
                "`callbacks` must also be in the list of callbacks of fit",
                callback=type(callback).__name__,
            )
    if late:
        raise error(
            "ExactResume must be the last of the callbacks of fit, so that what it restores is "
            "not changed afterwards",
            after_it=[type(callback).__name__ for callback in late],
        )
    for owner in training_state.rule_owners(model):
        if hasattr(owner, "get_state") and owner not in callbacks:
            raise error(
                f"`callbacks` must have {type(owner).__name__}, which keeps state",
                callbacks=[type(callback).__name__ for callback in callbacks],
            )


def check_data(data, steps):
    """The data must come in an order that can be drawn again.

    Args:
        data: The data if they have `set_epoch`, or None.
        steps: Number of steps of an epoch, or None if it is not known.
    """
    if hasattr(data, "__len__") and steps != len(data):
        raise error(
            "`data` must be what fit reads, all of it in each epoch, without steps_per_epoch",
            batches=len(data),
            steps=steps,
        )
    needs_seed = data is None and keras.backend.backend() == "tensorflow"
    if needs_seed and backend.shuffling_seed() is None:
        raise error(
            "TensorFlow must have a seed, or the order in which it shuffles cannot be drawn "
            "again: call keras.utils.set_random_seed, or use EpochShuffled",
            data=None,
            seed=None,
        )


def check_backup(path, state, origin, epochs):
    """The backup must be of the training at hand, and of no epoch behind its last one.

    Args:
        path: Path of the backup.
        state: What is in it.
        origin: The origin of the training at hand.
        epochs: Number of epochs of the training at hand.
    """
    different = differences(state["origin"], origin)
    if different:
        raise error(
            f"The backup must be of the same training, but {different}. It is left as it is",
            file=str(path),
        )
    if (state["epoch"], state["step"]) > (epochs, 0):
        raise error(
            "`epochs` must not be fewer than the backup has, which is left as it is",
            file=str(path),
            epochs=epochs,
            ended=state["epoch"],
            step=state["step"],
        )
