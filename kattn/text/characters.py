"""Characters as tokens."""

import numpy as np

from kattn import arguments


class Characters:
    """A tokenizer whose tokens are characters.

    Args:
        alphabet: String of all characters that it knows, each of them once. They are numbered in
            this order.
        first: Number of the first character, an integer >= 0. With 1, the number 0 is free, for
            padding.

    Raises:
        ValueError: If `alphabet` is empty or has a character twice, or if `first` is not an
            integer >= 0.

    Example:
        >>> characters = kattn.text.Characters.of("hello")
        >>> characters.alphabet, characters.vocabulary_size
        ('ehlo', 4)
        >>> characters.encode("hole")
        [1, 3, 2, 0]
        >>> characters.decode([1, 3, 2, 0])
        'hole'
    """

    def __init__(self, alphabet, *, first=0):
        arguments.check_integers(0, first=first)
        if not isinstance(alphabet, str) or not alphabet or len(set(alphabet)) != len(alphabet):
            raise arguments.error(
                "`alphabet` must be a string of one or more characters, each of them once; for the "
                "characters of a text write Characters.of(text)",
                alphabet=alphabet,
            )
        self.alphabet, self.first = alphabet, first
        self._codes = _codes(alphabet)
        self._order = np.argsort(self._codes, kind="stable")

    @classmethod
    def of(cls, text, *, first=0):
        """A tokenizer of all characters of a text, in the order of their code points.

        Args:
            text: String whose characters it shall know.
            first: Number of the first character, an integer >= 0.

        Returns:
            A `Characters`.
        """
        return cls("".join(sorted(set(text))), first=first)

    @property
    def vocabulary_size(self):
        """The number of tokens that a model needs: `first` and the length of the alphabet."""
        return self.first + len(self.alphabet)

    def encode(self, text):
        """The numbers of the characters of a text.

        Args:
            text: String of which each character is in the alphabet.

        Returns:
            int32 array, shape `(len(text),)`.

        Raises:
            ValueError: If the text has a character that is not in the alphabet.
        """
        codes = _codes(text)
        known = self._codes[self._order]
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        unknown = codes[known[places] != codes]
        if unknown.size:
            raise arguments.error(
                "`text` must consist of characters of the alphabet", character=chr(unknown[0])
            )
        return (self._order[places] + self.first).astype("int32")

    def decode(self, tokens):
        """The text of tokens.

        Args:
            tokens: Integers from `first` to `vocabulary_size` - 1, shape `(T,)`.

        Returns:
            A string of T characters.

        Raises:
            ValueError: If a number stands for no character.
        """
        places = np.asarray(tokens, "int64") - self.first
        wrong = places[(places < 0) | (places >= len(self.alphabet))]
        if wrong.size:
            raise arguments.error(
                "`tokens` must be numbers of characters",
                token=int(wrong[0]) + self.first,
                first=self.first,
                vocabulary_size=self.vocabulary_size,
            )
        return self._codes[places].tobytes().decode("utf-32-le")


def _codes(text):
    """The code point of each character."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
