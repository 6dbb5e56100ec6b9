"""The compiled functions of each model, which are found again as long as the model lives."""

import weakref
from typing import Any, NamedTuple

from kattn import backend
from kattn.generation.functional_decoder import FunctionalDecoder, decodes

MOST = 16  # programs that a model keeps: each new function among the rules of a sampler makes more


class Decoder(NamedTuple):
    """What decodes, as a plan gets it.

    Args:
        init_cache: Method of the model.
        decode: Method of the model.
        step: The same as `decode`, for the steps of a loop, whose shapes do not change.
    """

    init_cache: Any
    decode: Any
    step: Any


class Programs:
    """What was compiled for a model. It holds no reference to the model, which can be collected.

    Args:
        model: Model that decodes step by step, or a functional model that can.

    Raises:
        ValueError: If the model cannot decode.
    """

    def __init__(self, model):
        decoder = None if decodes(model) else FunctionalDecoder(model)
        self._decoder: Any = weakref.ref(model) if decoder is None else lambda: decoder
        self._compiled = {}
        self._steps = {}

    def run(self, model, is_long, plan, name, *tensors):
        """The result of a method of a plan, compiled once for each plan and shapes of tensors.

        Args:
            model: The model, whose variables may have other values than before.
            is_long: Whether it pays to compile for seconds what then runs in less time.
            plan: Object with the method, which must be hashable.
            name: Name of the method, which takes what decodes and then the tensors.
            *tensors: Arguments of the method: trees of tensors and None.
        """
        variables, jit_compile = model.variables, is_long or getattr(model, "jit_compile", False)
        # LoRA and quantisation bring new variables.
        key = plan, name, jit_compile, tuple(map(id, variables))
        if key not in self._compiled:
            if len(self._compiled) == MOST:
                del self._compiled[next(iter(self._compiled))]
            decoder, step = self._decoder, self._step_maker(variables)

            def function(*tensors):
                model = decoder()
                return getattr(plan, name)(
                    Decoder(model.init_cache, model.decode, step()), *tensors
                )

            self._compiled[key] = backend.program(function, variables, jit_compile)
        return self._compiled[key](*tensors)

    def _step_maker(self, variables):
        """That of all plans: none of them changes what the model decodes."""
        key = tuple(map(id, variables))
        if key not in self._steps:
            decoder = self._decoder
            self._steps = {key: backend.step_maker(lambda *x: decoder().decode(*x), variables)}
        return self._steps[key]


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
