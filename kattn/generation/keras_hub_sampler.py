"""Samplers of KerasHub (`keras_nlp`), as they are."""

import dataclasses
from typing import Any

import keras
from keras import ops

from kattn import arguments
from kattn.generation.samplers import Sampler


def is_keras_hub_sampler(sampler):
    """Whether it has the methods of a sampler of KerasHub, which is not imported for that."""
    return hasattr(sampler, "get_next_token") and hasattr(sampler, "compute_probabilities")


@dataclasses.dataclass(frozen=True)
class KerasHubSampler(Sampler):
    """A sampler of KerasHub that chooses each token from its probabilities alone.

    It draws by its own seed, and goes on from its last draw in the next call, as in KerasHub.

    Args:
        sampler: The `keras_hub.samplers.Sampler`.
    """

    sampler: Any

    def __post_init__(self):
        kind: Any = type(self.sampler)
        # Those that search, such as BeamSampler, have a loop of their own in place of this method.
        base = next((c for c in kind.__mro__ if c.__name__ == "Sampler"), None)
        if base is not None and kind.get_next_token is base.get_next_token:
            raise arguments.error(
                "A sampler of KerasHub must choose each token by its `get_next_token`; in place of "
                "its BeamSampler use kattn.generation.BeamSearch",
                sampler=kind.__name__,
            )

    def initial_state(self):
        return tuple(ops.convert_to_tensor(v) for v in self.sampler.variables)

    def next_tokens(self, logits, history, seed, step, state):
        variables = self.sampler.variables
        pairs = list(zip(variables, state, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            tokens = self.sampler.get_next_token(self.sampler.compute_probabilities(logits))
            state = tuple(scope.get_current_value(v) for v in variables)
        return ops.cast(tokens, "int32"), state

    def finish(self, state):
        for variable, value in zip(self.sampler.variables, state, strict=True):
            variable.assign(value)
