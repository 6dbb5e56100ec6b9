"""Beam search: the most likely continuation, as far as a few candidates at a time can find it."""

import dataclasses
from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.generation.prefill import check_in_vocabulary, prefill, repeated


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Searches the continuation Y of the highest log P(Y) / ((5 + |Y|) / 6)^a.

    It is given to `kattn.generate` in place of a sampler. Of each sequence the `num_beams` best
    candidates are kept; those that have ended stay in the comparison. |Y| counts the new tokens,
    the end included.

    Args:
        num_beams: Number of candidates of each sequence, an integer >= 1.
        length_penalty: The exponent a, a number >= 0: 0 compares plain log-probabilities, which
            prefers short continuations; greater numbers prefer longer ones.

    Example:
        >>> BeamSearch(4, length_penalty=0.6)
        BeamSearch(num_beams=4, length_penalty=0.6)

    Reference:
        Wu et al. 2016, sec. 7, eq. 14 (without its coverage), https://arxiv.org/abs/1609.08144
    """

    num_beams: int
    length_penalty: float = 0.6

    def __post_init__(self):
        arguments.check_integers(1, num_beams=self.num_beams)
        arguments.check_rates(length_penalty=self.length_penalty)


class BeamState(NamedTuple):
    """All that changes from step to step.

    Shapes: B batch, M beams, n new tokens.

    Args:
        cache: Cache of the model for B * M sequences, without their last tokens.
        tokens: New tokens of the candidates that have not ended, int32, shape `(B, M, n)`.
        scores: Their log-probabilities, shape `(B, M)`.
        ended: New tokens of the candidates that have ended, int32, shape `(B, M, n)`.
        ended_scores: Their log-probabilities by the length penalty, shape `(B, M)`.
        step: Number of tokens that were generated, int32 scalar.
    """

    cache: Any
    tokens: Any
    scores: Any
    ended: Any
    ended_scores: Any
    step: Any


@dataclasses.dataclass(frozen=True)
class BeamLoop:
    """A beam search: what the compiled function depends on, and this function.

    Args:
        search: The `BeamSearch`.
        steps: Number of new tokens at most, n.
        length: Number of steps that there must be room for.
        end_tokens: Tuple of the tokens that end a sequence.
        pad_token: Token that stands behind an end.
        policy: What kind of cache the model gets.
    """

    search: BeamSearch
    steps: int
    length: int
    end_tokens: tuple
    pad_token: int
    policy: Any

    def run(self, decoder, inputs):
        """The tokens of the best candidate of each sequence, `(B, n)`."""
        logits, (cache, _) = prefill(
            decoder, inputs, self.length, self.pad_token, self.policy.new_cache
        )
        check_in_vocabulary(logits, self.pad_token, self.end_tokens)
        start = self._start(repeated(cache, self.search.num_beams), logits.shape[0])
        state = self._expand(start, repeated(logits, self.search.num_beams))

        def goes_on(*state):
            state = BeamState(*state)
            return ops.logical_and(state.step < self.steps, ops.any(self._can_improve(state)))

        def body(*state):
            state = BeamState(*state)
            last = ops.take(state.tokens, state.step - 1, axis=2)  # (B, M)
            logits, cache = decoder.step(ops.reshape(last, (-1, 1)), state.cache)
            return tuple(self._expand(state._replace(cache=cache), logits[:, 0]))

        state = BeamState(*ops.while_loop(goes_on, body, tuple(state)))
        scores = state.scores / self._penalty(state.step)
        tokens = ops.concatenate([state.ended, state.tokens], axis=1)
        _, best = ops.top_k(ops.concatenate([state.ended_scores, scores], axis=1), 1)
        return _pick(tokens, best)[:, 0]

    def _start(self, cache, batch):
        beams = self.search.num_beams
        tokens = ops.full((batch, beams, self.steps), self.pad_token, "int32")
        none = ops.full((batch, beams), float("-inf"), "float32")
        # All candidates are the prompt yet, so one of them is enough.
        scores = ops.where(ops.arange(beams) == 0, ops.zeros_like(none), none)
        return BeamState(cache, tokens, scores, tokens, none, ops.zeros((), "int32"))

    def _expand(self, state, logits):
        """The state with one more token of each candidate; `logits` `(B * M, V)`."""
        batch, beams = state.scores.shape
        vocabulary = logits.shape[-1]
        chances = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        chances = state.scores[..., None] + ops.reshape(chances, (batch, beams, vocabulary))
        # So many that `beams` are left if all the others end.
        most = min(beams * (1 + len(self.end_tokens)), beams * vocabulary)
        scores, index = ops.top_k(ops.reshape(chances, (batch, beams * vocabulary)), most)
        index = ops.cast(index, "int32")
        beam, token = index // vocabulary, index % vocabulary  # (B, most)
        now = ops.arange(self.steps, dtype="int32") == state.step
        tokens = ops.where(now, token[..., None], _pick(state.tokens, beam))
        ends = ops.zeros_like(token, "bool")
        for end in self.end_tokens:
            ends = ops.logical_or(ends, token == end)
        never = ops.full_like(scores, float("-inf"))
        alive, kept = ops.top_k(ops.where(ends, never, scores), beams)
        ended = ops.where(ends, scores / self._penalty(state.step + 1), never)
        ended, best = ops.top_k(ops.concatenate([state.ended_scores, ended], axis=1), beams)
        all_ended = ops.concatenate([state.ended, tokens], axis=1)
        rows = beams * ops.arange(batch, dtype="int32")[:, None] + _pick(beam, kept)
        rows = ops.reshape(rows, (-1,))
        cache = keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), state.cache)
        return BeamState(
            cache, _pick(tokens, kept), alive, _pick(all_ended, best), ended, state.step + 1
        )

    def _can_improve(self, state):
        """`(B,)` bool: whether a candidate may still become better than all that have ended."""
        best = state.scores[:, 0] / self._penalty(self.steps)  # if nothing is lost on the way
        return best > state.ended_scores[:, 0]

    def _penalty(self, length):
        return ((5.0 + ops.cast(length, "float32")) / 6.0) ** self.search.length_penalty


def _pick(x, index):
    """`(B, m, ...)`: the entries of x `(B, M, ...)` at `index` `(B, m)`."""
    index = ops.cast(index, "int32")
    for _ in x.shape[2:]:
        index = index[..., None]
    shape = (*index.shape[:2], *x.shape[2:])
    return ops.take_along_axis(x, ops.broadcast_to(index, shape), axis=1)
