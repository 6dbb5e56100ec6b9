"""What callbacks have changed is put back when `fit` ends by an exception.

Keras calls no callback then. So each callback that changes something registers here when training
begins. What is left is put back as soon as Python drops the calls of that `fit`, which is at once
where the exception is caught. A notebook keeps them for its traceback; then it is put back at the
beginning of the next `fit` or `train_on_batch`, whether that has callbacks or not. The same holds
if the garbage collector drops them, as that runs at any moment, also while a program is traced.
"""

import gc
import sys
import types
import weakref

from kattn.callbacks.update.fit_callbacks import list_of

_ATTRIBUTE = "_kattn_fit"


def watch(callback):
    """Have `callback.release()` called if this `fit` does not reach its end.

    To be called in `on_train_begin`. A second call of `release` must change nothing.
    """
    callbacks, model = list_of(callback), callback.model
    if callbacks is None:
        return
    fit = vars(model).get(_ATTRIBUTE)
    if fit is None or fit.callbacks() is not callbacks:
        if fit is not None:
            fit.release()
        fit = _Fit(model, callbacks)
    fit.members.append(callback)


def end(callback):
    """Forget a callback, as training has ended."""
    model = callback.model
    fit = None if model is None else vars(model).get(_ATTRIBUTE)
    if fit is not None:
        fit.members = [each for each in fit.members if each is not callback]
        if not fit.members:
            fit.forget()


class _Fit:
    """One `fit` of a model.

    Attributes:
        callbacks: Weak reference to its `CallbackList`, which lives as long as the `fit`.
        members: Callbacks that are to be released.
    """

    def __init__(self, model, callbacks):
        self.callbacks = weakref.ref(callbacks)
        self.members = []
        self._model = weakref.ref(model)
        self._stock = model.make_train_function
        self._shadow = vars(model).get("make_train_function")  # that someone else has put there
        object.__setattr__(model, _ATTRIBUTE, self)
        object.__setattr__(model, "make_train_function", self._make_train_function)
        if _note_collection not in gc.callbacks:
            gc.callbacks.append(_note_collection)
        weakref.finalize(callbacks, _release, weakref.ref(self)).atexit = False

    def _make_train_function(self, *args, **kwargs):
        """What each `fit` and `train_on_batch` of the model calls first."""
        if not self._is_running():
            self.release()
        return self._stock(*args, **kwargs)

    def _is_running(self):
        """Whether this is called from within the `fit`."""
        callbacks = self.callbacks()
        frame: types.FrameType | None = sys._getframe(1)
        while callbacks is not None and frame is not None:
            if any(value is callbacks for value in frame.f_locals.values()):
                return True
            frame = frame.f_back
        return False

    def release(self):
        """Release what is left, and forget the `fit`."""
        members, self.members = self.members, []
        self.forget()
        for callback in members:
            callback.release()

    def forget(self):
        model = self._model()
        if model is not None and vars(model).get(_ATTRIBUTE) is self:
            object.__delattr__(model, _ATTRIBUTE)
            object.__delattr__(model, "make_train_function")
            if self._shadow is not None:
                object.__setattr__(model, "make_train_function", self._shadow)


_collections: set[str] = set()  # the one of the garbage collector, while it runs


def _note_collection(phase, _):
    (_collections.add if phase == "start" else _collections.discard)("now")


def _release(reference):
    """At the end of a `CallbackList`."""
    fit = reference()
    if fit is not None and not _collections:
        fit.release()
