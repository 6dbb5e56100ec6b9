"""Labelled texts as rows of tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.data.labelled_texts import TextData


@dataclass(frozen=True)
class EncodedTexts:
    """Labelled texts, and their tokens `(count, length)` int32, with zeros behind a short text."""

    data: TextData
    x: np.ndarray
    x_test: np.ndarray
    vocabulary_size: int

    @classmethod
    def of(cls, data: TextData, subwords: Any, length: int) -> "EncodedTexts":
        """Encode texts.

        Args:
            data: The texts.
            subwords: A `kattn.text.Subwords`. Special tokens that its tokenizer puts around a text,
                as that of BERT does, are kept.
            length: Number of tokens in a row. Longer texts are cut.
        """
        tokenizer = subwords.tokenizer
        tokenizer.enable_truncation(length)
        tokenizer.no_padding()

        def encode(texts: tuple[str, ...]) -> np.ndarray:
            rows: np.ndarray = np.zeros((len(texts), length), "int32")
            for row, encoded in zip(rows, tokenizer.encode_batch(list(texts)), strict=True):
                row[: len(encoded.ids)] = encoded.ids
            return rows

        return cls(data, encode(data.texts), encode(data.test_texts), subwords.vocabulary_size)
