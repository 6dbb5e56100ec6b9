"""How the next token is chosen from logits."""

import dataclasses
from collections.abc import Callable, Sequence

from keras import ops

from kattn import arguments
from kattn.ops.random_numbers import uniform

SMALLEST = 1e-30  # a draw of 0 has no logarithm


class Sampler:
    """Base of what chooses the next token of each sequence."""

    def initial_state(self):
        """Tensors that the sampler changes with each token, as a tuple."""
        return ()

    def next_tokens(self, logits, history, seed, step, state):
        """The next tokens, and the state after them.

        Args:
            logits: Logits of the next token, float32, shape `(B, V)`.
            history: `History` of the tokens so far.
            seed: Seed of all draws, int32 scalar.
            step: Number of tokens that were generated before, int32 scalar.
            state: Tensors that `initial_state` or the last call returned.

        Returns:
            `(tokens, state)`: tokens, int32, shape `(B,)`, and the new state.
        """
        raise NotImplementedError

    def finish(self, state):
        """Called with the last state, once all tokens are there."""


@dataclasses.dataclass(frozen=True)
class _Rules(Sampler):
    rules: Sequence[Callable] = ()

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not callable(rule):
                raise arguments.error(
                    "`rules` must be functions of logits and history, such as "
                    "kattn.generation.TopK(40)",
                    rule=rule,
                )

    def _apply(self, logits, history):
        for rule in self.rules:
            logits = rule(logits, history)
        return logits


@dataclasses.dataclass(frozen=True)
class GreedySampler(_Rules):
    """Chooses the most likely token.

    Args:
        rules: Functions that change the logits before, in this order, such as
            `RepetitionPenalty(1.2)`; see `RandomSampler`.

    Example:
        >>> sampler = GreedySampler([kattn.generation.RepetitionPenalty(1.2)])
        >>> sampler.rules
        (RepetitionPenalty(penalty=1.2),)
    """

    def next_tokens(self, logits, history, seed, step, state):
        """The most likely tokens; for the arguments see `Sampler`."""
        return ops.cast(ops.argmax(self._apply(logits, history), axis=-1), "int32"), state


@dataclasses.dataclass(frozen=True)
class RandomSampler(_Rules):
    """Draws the next token from the softmax of the logits, after rules that change these.

    Args:
        rules: Functions that change the logits before, in this order, such as `Temperature(0.8)`
            and `TopK(40)`. One of your own is a function of logits, float32 `(B, V)`, and of the
            `History` of the tokens so far that returns logits; minus infinity removes a token. It
            is compiled, and found again by its identity: define it once, not anew for each call.

    Example:
        >>> from kattn.generation import Temperature, TopK, TopP
        >>> def only_even(logits, history):
        ...     is_odd = keras.ops.arange(logits.shape[-1]) % 2 == 1
        ...     return keras.ops.where(is_odd, float("-inf"), logits)
        >>> sampler = RandomSampler([Temperature(0.8), TopK(40), TopP(0.95), only_even])
        >>> len(sampler.rules)
        4

    Reference:
        Gumbel-max: Maddison et al. 2014, sec. 2, https://arxiv.org/abs/1411.0030
    """

    def next_tokens(self, logits, history, seed, step, state):
        """Tokens that are drawn; for the arguments see `Sampler`."""
        logits = self._apply(logits, history)
        draws = uniform(seed, step, tuple(logits.shape))
        noise = -ops.log(-ops.log(ops.maximum(draws, SMALLEST)))
        return ops.cast(ops.argmax(logits + noise, axis=-1), "int32"), state
