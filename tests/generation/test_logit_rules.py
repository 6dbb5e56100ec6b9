"""Each rule against NumPy: the distribution that it leaves."""

import numpy as np
import pytest
from keras import ops

from kattn.generation import (
    History,
    MinP,
    NoRepeatNGram,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
)
from tests.compute import assert_close, run

TOKENS = np.array([[0, 3, 4, 0, 3, 9], [2, 2, 9, 9, 9, 9], [5, 9, 9, 9, 9, 9]], "int32")
LENGTH = np.array([5, 2, 1], "int32")


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def only(p, keep):
    """The distribution p, given that a token is one of those to keep."""
    return np.where(keep, p, 0) / np.where(keep, p, 0).sum(axis=-1, keepdims=True)


def top_k(logits, k):
    keep = [np.isin(np.arange(len(row)), np.argsort(-row)[:k]) for row in logits]
    return only(softmax(logits), keep)


def top_p(logits, limit):
    p = softmax(logits)
    keep = np.zeros_like(p, bool)
    for row, kept in zip(p, keep, strict=True):
        total = 0.0
        for token in np.argsort(-row):
            kept[token] = True
            total += row[token]
            if total >= limit:
                break
    return only(p, keep)


def min_p(logits, share):
    p = softmax(logits)
    return only(p, p >= share * p.max(axis=-1, keepdims=True))


def penalty(logits, c):
    changed = logits.copy()
    for b, row in enumerate(TOKENS):
        for token in set(row[: LENGTH[b]].tolist()):
            changed[b, token] = logits[b, token] * (1 / c if logits[b, token] > 0 else c)
    return softmax(changed)


def no_repeat(logits, n):
    keep = np.ones_like(logits, bool)
    for b, row in enumerate(TOKENS):
        row = row[: LENGTH[b]].tolist()
        for i in range(len(row) - n + 1):
            if len(row) >= n - 1 and row[i : i + n - 1] == row[len(row) - n + 1 :]:
                keep[b, row[i + n - 1]] = False
    return only(softmax(logits), keep)


CASES = {
    "temperature": (Temperature(0.6), lambda z: softmax(z / 0.6)),
    "top k": (TopK(3), lambda z: top_k(z, 3)),
    "top k of more than all": (TopK(99), softmax),
    "top p": (TopP(0.7), lambda z: top_p(z, 0.7)),
    "top p of little": (TopP(0.01), lambda z: top_k(z, 1)),
    "top p of all": (TopP(1.0), softmax),
    "min p": (MinP(0.3), lambda z: min_p(z, 0.3)),
    "penalty": (RepetitionPenalty(1.7), lambda z: penalty(z, 1.7)),
    "1-gram": (NoRepeatNGram(1), lambda z: no_repeat(z, 1)),
    "2-gram": (NoRepeatNGram(2), lambda z: no_repeat(z, 2)),
    "3-gram": (NoRepeatNGram(3), lambda z: no_repeat(z, 3)),
    "7-gram, longer than all": (NoRepeatNGram(7), softmax),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(rng, name):
    rule, expected = CASES[name]
    logits = rng.normal(size=(3, 10)).astype("float32")
    history = History(ops.convert_to_tensor(TOKENS), ops.convert_to_tensor(LENGTH))
    found = run(rule, ops.convert_to_tensor(logits), history)
    assert_close(softmax(found), expected(logits.astype("float64")))


BAD = {
    "temperature": (lambda: Temperature(0), r"`temperature` must be a finite number above 0"),
    "k": (lambda: TopK(0), r"`k` must be an integer >= 1"),
    "p": (lambda: TopP(0.0), r"`p` must be a factor in \(0, 1\]"),
    "min p": (lambda: MinP(1.5), r"`p` must be a factor in \(0, 1\]"),
    "penalty": (lambda: RepetitionPenalty(-1), r"`penalty` must be a finite number above 0"),
    "n": (lambda: NoRepeatNGram(0), r"`n` must be an integer >= 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
