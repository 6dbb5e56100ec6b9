"""The loop that generates: choose a token of each sequence, decode it, and so on."""

import dataclasses
import functools
from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.generation.cache_policies import FullCache
from kattn.generation.prefill import Prefix, check_in_vocabulary, prefill


class State(NamedTuple):
    """All that changes from step to step.

    Args:
        cache: Cache of the model, which has all tokens of the history but `last`.
        history: `History` with `last`.
        last: The tokens that came last, int32, shape `(B,)`.
        is_new: Whether `last` is a token, and not padding behind an end, bool, shape `(B,)`.
        done: Which sequences have ended, bool, shape `(B,)`.
        step: Number of tokens that were generated, int32 scalar.
        sampler: State of the sampler.
    """

    cache: Any
    history: Any
    last: Any
    is_new: Any
    done: Any
    step: Any
    sampler: Any


@dataclasses.dataclass(frozen=True)
class SamplingLoop:
    """A generation token by token: what the compiled functions depend on, and these functions.

    Args:
        sampler: The `Sampler`.
        length: Number of steps that there must be room for.
        end_tokens: Tuple of the tokens that end a sequence.
        pad_token: Token that stands behind an end.
        policy: What kind of cache the model gets.
        keeps_cache: Whether the cache is used again, so that it must not take up padding.
    """

    sampler: Any
    length: int
    end_tokens: tuple = ()
    pad_token: int = 0
    policy: Any = FullCache()  # noqa: RUF009, it is frozen
    keeps_cache: bool = False

    def read(self, decoder, inputs):
        """The `Prefix` with the prompts; nothing is generated."""
        return self._prefill(decoder, inputs)[1]

    def begin(self, decoder, inputs, sampler_state, seed):
        """The `State` with the first tokens."""
        logits, (cache, history) = self._prefill(decoder, inputs)
        check_in_vocabulary(logits, self.pad_token, self.end_tokens)
        batch = inputs.tokens.shape[0]
        nothing, no = ops.zeros((batch,), "int32"), ops.zeros((batch,), "bool")
        step = ops.zeros((), "int32")
        state = State(cache, history, nothing, no, no, step, sampler_state)
        return self._choose(state, logits, seed)

    def advance(self, decoder, state, stop, seed):
        """The `State` once `stop` tokens were generated, or once all sequences have ended."""

        def goes_on(*state):
            state = State(*state)
            return ops.logical_and(state.step < stop, ops.logical_not(ops.all(state.done)))

        def body(*state):
            state = State(*state)
            logits, cache = self._decode(decoder, state)
            return tuple(self._choose(state._replace(cache=cache), logits[:, 0], seed))

        return State(*ops.while_loop(goes_on, body, tuple(state)))

    def finish(self, decoder, state):
        """The `Prefix` with all tokens, the last ones included."""
        _, cache = self._decode(decoder, state)
        return Prefix(cache, state.history)

    def _prefill(self, decoder, inputs):
        return prefill(decoder, inputs, self.length, self.pad_token, self.policy.new_cache)

    def _decode(self, decoder, state):
        # Sequences that have ended go along with padding, which may stay in a cache that is left.
        mask = state.is_new[:, None] if self.keeps_cache else None
        return decoder.step(state.last[:, None], state.cache, mask)

    def _choose(self, state, logits, seed):
        """The state with one more token of each sequence that has not ended."""
        logits = ops.cast(logits, "float32")
        tokens, sampler_state = self.sampler.next_tokens(
            logits, state.history, seed, state.step, state.sampler
        )
        extended = _extension(self.end_tokens, self.pad_token)
        changed = extended(tokens, state.history, state.done, state.step)
        return State._make((state.cache, *changed, sampler_state))


@functools.lru_cache(maxsize=16)
def _extension(end_tokens, pad_token):
    """`_extended` with these tokens, traced: of plain operations it has as many as a layer."""
    return backend.step_maker(functools.partial(_extended, end_tokens, pad_token), [])()


def _extended(end_tokens, pad_token, tokens, history, done, step):
    """What a `State` has between cache and sampler, with these tokens `(B,)`."""
    is_new = ops.logical_not(done)
    last = ops.where(is_new, tokens, ops.full_like(tokens, pad_token))
    for token in end_tokens:
        done = ops.logical_or(done, last == token)
    history = history.extend(last[:, None], ops.cast(is_new, "int32"))
    return history, last, is_new, done, step + 1
