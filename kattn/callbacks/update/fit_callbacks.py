"""The callbacks that are in the same `fit`, of which Keras tells a callback nothing."""

import sys
import types

import keras

from kattn.arguments import error


def list_of(callback):
    """Return the `CallbackList` of the `fit` that is calling a callback, or None.

    It is looked for among the calls that have led here. There is none if something else than `fit`
    calls the callback.
    """
    frame: types.FrameType | None = sys._getframe(1)  # not this one, which would hold itself
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList) and any(
            each is callback for each in owner.callbacks
        ):
            return owner
        frame = frame.f_back
    return None


def before_and_after(callback):
    """Return the callbacks of the same `fit` before and behind a callback, as two lists."""
    found = list_of(callback)
    every = [callback] if found is None else found.callbacks
    place = next(i for i, each in enumerate(every) if each is callback)
    return every[:place], every[place + 1 :]


def refuse(callback, others, kinds, reason):
    """Raise ValueError if one of the other callbacks is of a kind that must not be there.

    Args:
        callback: The callback that refuses others, for the message.
        others: List of the callbacks to look at.
        kinds: A class, or a tuple of classes.
        reason: The rule that is broken, a sentence without its stop.
    """
    refused = [each for each in others if isinstance(each, kinds)]
    if refused:
        raise error(reason, **{type(callback).__name__: [type(each).__name__ for each in refused]})
