"""Parallel texts as rows of subwords, and their translations as texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sacrebleu

from recipes.data.parallel_texts import Pairs, ParallelTexts

SPECIAL = ("<pad>", "<begin>", "<end>")
PAD, BEGIN, END = range(3)
MULTIPLE = 8  # batches are as wide as a multiple of it


@dataclass(frozen=True)
class EncodedPairs:
    """Parallel texts as rows of tokens, with zeros behind a short text.

    Sources `(count, length)` end with `END`. Targets `(count, length + 1)` begin with `BEGIN` and
    end with `END`. Both languages share the subwords.
    """

    texts: ParallelTexts
    subwords: Any  # a `kattn.text.Subwords`
    length: int
    train: tuple[np.ndarray, np.ndarray]
    validate: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    left_out: int  # pairs to train that are longer

    @classmethod
    def of(cls, texts: ParallelTexts, vocabulary_size: int, length: int) -> "EncodedPairs":
        """Encode texts by subwords that those to train have taught.

        Args:
            texts: The texts.
            vocabulary_size: Number of subwords of both languages at most.
            length: Number of tokens of a text at most, its end included. Pairs to train with a
                longer text are left out, other texts are cut.

        Raises:
            ValueError: If `vocabulary_size` leaves no room for the bytes, or if all pairs to train
                are longer.
        """
        from kattn import arguments
        from kattn.text import Subwords

        both = [*texts.train.sources, *texts.train.targets]
        subwords = Subwords.train(both, vocabulary_size, special_tokens=SPECIAL)
        encoded = [_encode(subwords, side) for side in texts.train]
        fits = np.array([max(map(len, pair)) <= length for pair in zip(*encoded, strict=True)])
        if not fits.any():
            raise arguments.error(
                "`length` must leave at least one pair to train", length=length, pairs=len(fits)
            )
        train, validate, test = (
            _rows(subwords, part, length)
            for part in (texts.train.chosen(np.flatnonzero(fits)), texts.validate, texts.test)
        )
        left_out = int((~fits).sum())
        return cls(texts, subwords, length, train, validate, test, left_out)

    @property
    def vocabulary_size(self) -> int:
        """Number of subwords."""
        return self.subwords.vocabulary_size

    def batches(self, batch_size: int, seed: int) -> Any:
        """Batches of pairs to train, a `LengthBuckets`."""
        from recipes.data.length_buckets import LengthBuckets

        return LengthBuckets(*self.train, batch_size=batch_size, seed=seed, multiple=MULTIPLE)

    def to_validate(self, count: int) -> tuple[Any, ...]:
        """The first pairs to validate as `fit` takes them, all of one width."""
        from recipes.data.length_buckets import teacher_forcing

        return teacher_forcing([side[:count] for side in self.validate], MULTIPLE)

    def text(self, tokens: Iterable[int]) -> str:
        """The text of tokens, which ends before `END`."""
        kept = [int(token) for token in tokens]
        kept = kept[: kept.index(END)] if END in kept else kept
        return self.subwords.decode([token for token in kept if token not in (PAD, BEGIN)])

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """Each token as a text of its own, up to the padding."""
        names = dict(enumerate(SPECIAL))
        return [
            names.get(int(token), self.subwords.decode([token])) for token in tokens if token != PAD
        ]

    def translate(
        self, model: Any, source: np.ndarray, sampler: Any = None, batch_size: int = 64
    ) -> np.ndarray:
        """What a model makes of sources: tokens, int32, shape `(count, length)`.

        Sources of about one length are decoded together, and the last batch is filled up, as each
        new shape means compiling anew.

        Args:
            model: Model whose `init_cache` takes the source as its context.
            source: Rows of tokens, shape `(count, S)`.
            sampler: A sampler of `kattn.generation`, or a `BeamSearch`; None takes the most likely
                token at each step.
            batch_size: Number of sources that are decoded together.
        """
        from kattn.generation import generate
        from recipes.data.length_buckets import lengths, rounded_up

        found: np.ndarray = np.zeros((len(source), self.length), "int32")
        order = lengths(source).argsort(kind="stable")
        begin: np.ndarray = np.full((batch_size, 1), BEGIN, "int32")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            filled = source[np.resize(rows, batch_size)]
            width = rounded_up(int(lengths(filled).max()), MULTIPLE, source.shape[1])
            tokens = generate(
                model,
                begin,
                self.length,
                sampler=sampler,
                end_token=END,
                pad_token=PAD,
                context=filled[:, :width],
            )
            found[rows] = tokens[: len(rows)]
        return found

    def scores(self, found: np.ndarray, *, lower: bool) -> dict[str, float]:
        """BLEU of translations of the sources to test, and which share is right to the letter."""
        return text_scores([self.text(row) for row in found], self.texts.test.targets, lower=lower)


def text_scores(found: Sequence[str], wanted: Sequence[str], *, lower: bool) -> dict[str, float]:
    """BLEU by sacreBLEU, from 0 to 100, and the fraction of texts that are as wanted.

    Args:
        found: The translations.
        wanted: The one reference of each.
        lower: Whether BLEU does not tell upper and lower case apart.
    """
    bleu = sacrebleu.corpus_bleu(list(found), [list(wanted)], lowercase=lower, tokenize="13a")
    equal = [text == other for text, other in zip(found, wanted, strict=True)]
    return {"bleu": float(bleu.score), "accuracy": float(np.mean(equal))}


def _encode(subwords: Any, texts: Sequence[str]) -> list[list[int]]:
    return [[*tokens, END] for tokens in subwords.encode(list(texts))]


def _rows(subwords: Any, pairs: Pairs, length: int) -> tuple[np.ndarray, np.ndarray]:
    count = len(pairs.sources)
    source: np.ndarray = np.zeros((count, length), "int32")
    target: np.ndarray = np.zeros((count, length + 1), "int32")
    target[:, 0] = BEGIN
    for rows, side in ((source, pairs.sources), (target[:, 1:], pairs.targets)):
        for row, tokens in zip(rows, _encode(subwords, side), strict=True):
            row[: len(tokens)] = tokens[:length]
    return source, target
