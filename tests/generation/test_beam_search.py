"""Against a search in NumPy, over log-probabilities of the whole pass."""

import functools
import itertools

import numpy as np
import pytest

from kattn.generation import BeamSearch, generate
from kattn.layers import RotaryEmbedding
from tests.compute import quick, run
from tests.generation_models import VOCABULARY, Decoder, Recurrent, ready

PROMPTS = [[3, 1, 4], [5]]
STEPS, END = 3, 7


def attention():
    return Decoder(RotaryEmbedding())


@functools.cache
def model_of(kind):
    """Its logits are near each other: else all beams stay what they are, and so do their caches."""
    model = ready(kind())
    model.head.set_weights([w / 5 for w in model.head.get_weights()])
    return model


@functools.cache
def chances_of(model):
    """Function of a prompt and up to two tokens behind: log-probabilities of the next token."""
    call, tables = quick(model), []
    for prompt in PROMPTS:
        rows = np.zeros((VOCABULARY, VOCABULARY, 5), "int32")
        rows[..., : len(prompt)] = prompt
        rows[..., len(prompt) : len(prompt) + 2] = np.indices(rows.shape[:2]).transpose(1, 2, 0)
        logits = run(call, rows.reshape(-1, 5)).astype("float64")
        table = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        tables.append(table.reshape(VOCABULARY, VOCABULARY, 5, VOCABULARY))

    def of(prompt, tokens):
        table = tables[PROMPTS.index(prompt)]
        return table[(*tokens, 0, 0)[:2]][len(prompt) + len(tokens) - 1]

    return of


def penalized(score, length, a):
    return score / ((5 + length) / 6) ** a


def search(chances, prompt, beams, a, end):
    """One step after the other, with lists."""
    alive, ended = [((), 0.0)], []
    for _ in range(STEPS):
        longer = [
            ((*tokens, token), score + chances(prompt, tokens)[token])
            for tokens, score in alive
            for token in range(VOCABULARY)
        ]
        longer.sort(key=lambda pair: -pair[1])
        longer = longer[: 2 * beams]
        ended += [(t, penalized(s, len(t), a)) for t, s in longer if t[-1] == end]
        ended = sorted(ended, key=lambda pair: -pair[1])[:beams]
        alive = [pair for pair in longer if pair[0][-1] != end][:beams]
    ended += [(t, penalized(s, len(t), a)) for t, s in alive]
    best = max(ended, key=lambda pair: pair[1])[0]
    return [*best, *[9] * (STEPS - len(best))]


@pytest.mark.parametrize(
    ("kind", "beams", "a", "end"),
    [(attention, 3, 0.0, END), (Recurrent, 2, 2.0, END), (Recurrent, 2, 0.6, None)],
)
def test_equals_a_search_in_numpy(kind, beams, a, end):
    model, chances = model_of(kind), chances_of(model_of(kind))
    found = generate(
        model, PROMPTS, STEPS, sampler=BeamSearch(beams, a), end_token=end, pad_token=9
    )
    np.testing.assert_array_equal(found, [search(chances, p, beams, a, end) for p in PROMPTS])


def test_many_beams_find_the_best_of_all():
    """With as many beams as there are pairs of tokens nothing is lost on the way."""
    model, chances = model_of(Recurrent), chances_of(model_of(Recurrent))
    found = generate(model, PROMPTS, STEPS, sampler=BeamSearch(VOCABULARY**2, 0.0))
    for row, prompt in zip(found, PROMPTS, strict=True):
        every = itertools.product(range(VOCABULARY), repeat=2)
        best = {
            (*pair, int(chances(prompt, pair).argmax())): chances(prompt, ())[pair[0]]
            + chances(prompt, pair[:1])[pair[1]]
            + chances(prompt, pair).max()
            for pair in every
        }
        assert tuple(row) == max(best, key=best.get)


def test_one_beam_is_greedy():
    model, chances = model_of(Recurrent), chances_of(model_of(Recurrent))
    found = generate(model, PROMPTS, STEPS, sampler=BeamSearch(1))
    for row, prompt in zip(found.tolist(), PROMPTS, strict=True):
        assert row == [chances(prompt, row[:i]).argmax() for i in range(STEPS)]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`num_beams` must be an integer >= 1"):
        BeamSearch(0)
    with pytest.raises(ValueError, match=r"`length_penalty` must be a finite number >= 0"):
        BeamSearch(2, -1.0)
