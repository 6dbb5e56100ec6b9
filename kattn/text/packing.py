"""Short texts side by side in rows of one length, each in a segment of its own."""

from typing import Any, NamedTuple

import numpy as np

from kattn import arguments


class Packed(NamedTuple):
    """Texts side by side.

    With `mask=kattn.masks.Segments(segments)` no text sees another one, and the positions of
    kattn's layers begin anew in each.

    Args:
        tokens: Tokens, int32, shape `(rows, length)`.
        segments: Number of the text within its row, from 1 on, int32, shape `(rows, length)`; 0 at
            padding.
    """

    tokens: Any
    segments: Any

    def next_tokens(self):
        """Inputs, targets and weights for a model that predicts the next token of each text.

        Returns:
            `(inputs, segments, targets, weights)`, each of shape `(rows, length - 1)`. A weight is
            1.0 where the target is of the same text as the input, else 0.0.
        """
        before, after = self.segments[:, :-1], self.segments[:, 1:]
        weights = ((before == after) & (before > 0)).astype("float32")
        return self.tokens[:, :-1], before, self.tokens[:, 1:], weights


def pack(texts, length, *, pad_token=0):
    """Puts texts side by side into as few rows as it can, so that little is padding.

    The longest texts are placed first, each into the fullest row that has room (best fit, which
    needs at most some 11/9 of the fewest rows). A text that is longer than a row is cut into texts
    of `length` tokens and a rest.

    Args:
        texts: List of texts, each a list or an array of integers, shape `(T,)` with its own T.
            Those without tokens are left out.
        length: Number of tokens in a row, an integer >= 1.
        pad_token: Token at the places that stay free.

    Returns:
        A `Packed`, whose rows are in the order in which they were begun.

    Raises:
        ValueError: If `length` is not an integer >= 1, if a text is not a sequence of integers, or
            if there is no token.

    Example:
        >>> packed = kattn.text.pack([[5, 6, 7], [8], [9, 9]], 4)
        >>> packed.tokens
        [[5, 6, 7, 8], [9, 9, 0, 0]]
        >>> packed.segments
        [[1, 1, 1, 2], [1, 1, 0, 0]]

    Reference:
        Krell et al. 2021, sec. 3, https://arxiv.org/abs/2107.02027; best fit: Johnson et al. 1974,
        https://doi.org/10.1137/0203025
    """
    arguments.check_integers(1, length=length)
    pieces = [piece for text in texts for piece in _pieces(text, length)]
    if not pieces:
        raise arguments.error("`texts` must hold at least one token", texts=len(list(texts)))
    rows: list[list[Any]] = []
    open_rows: dict[int, list[int]] = {}  # numbers of the rows that have so much room
    for i in sorted(range(len(pieces)), key=lambda i: -len(pieces[i])):  # stable
        size = len(pieces[i])
        room = next((room for room in range(size, length) if open_rows.get(room)), length)
        if room == length:
            rows.append([])
            row = len(rows) - 1
        else:
            row = open_rows[room].pop(0)
        rows[row].append(pieces[i])
        open_rows.setdefault(room - size, []).append(row)
    packed = Packed(
        np.full((len(rows), length), pad_token, "int32"), np.zeros((len(rows), length), "int32")
    )
    for row, held in enumerate(rows):
        ends = np.cumsum([len(piece) for piece in held])
        packed.tokens[row, : ends[-1]] = np.concatenate(held)
        packed.segments[row, : ends[-1]] = np.repeat(
            np.arange(len(held)) + 1, np.diff(ends, prepend=0)
        )
    return packed


def _pieces(text, length):
    """A text as arrays of at most `length` tokens."""
    tokens = np.asarray(text)
    if tokens.size == 0:
        return []
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise arguments.error("Each of `texts` must be integers of shape (T,)", text=text)
    return [tokens[start : start + length] for start in range(0, len(tokens), length)]
