"""The compiled functions of each model, which are found again as long as the model lives."""

import weakref

from kattn import backend
from kattn.generation.functional_decoder import FunctionalDecoder, decodes

MOST = 16  # programs that a model keeps: each new function among the rules of a sampler makes more


class Programs:
    """What was compiled for a model. It holds no reference to the model, which can be collected.

    Args:
        model: Model that decodes step by step, or a functional model that can.

    Raises:
        ValueError: If the model cannot decode.
    """

    def __init__(self, model):
        decoder = None if decodes(model) else FunctionalDecoder(model)
        self._decoder = weakref.ref(model) if decoder is None else lambda: decoder
        self._compiled = {}

    def run(self, variables, plan, name, *tensors):
        """The result of a method of a plan, compiled once for each plan and shapes of tensors.

        Args:
            variables: Variables of the model, whose values may change between calls.
            plan: Object with the method, which must be hashable.
            name: Name of the method, which takes what decodes and then the tensors.
            *tensors: Arguments of the method: trees of tensors and None.
        """
        key = plan, name, tuple(map(id, variables))  # LoRA and quantisation bring new ones
        if key not in self._compiled:
            if len(self._compiled) == MOST:
                del self._compiled[next(iter(self._compiled))]
            decoder = self._decoder

            def function(*tensors):
                return getattr(plan, name)(decoder(), *tensors)

            self._compiled[key] = backend.program(function, variables)
        return self._compiled[key](*tensors)


_OF_MODELS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def programs_of(model):
    """The `Programs` of a model.

    Args:
        model: Model that decodes step by step, or a functional model that can.

    Returns:
        `Programs`, the same for each call with this model.

    Raises:
        ValueError: If the model cannot decode.
    """
    if model not in _OF_MODELS:
        _OF_MODELS[model] = Programs(model)
    return _OF_MODELS[model]
