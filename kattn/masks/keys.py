"""Masks that go by which key it is, not by its distance from the query."""

from typing import Any

from keras import ops

from kattn import backend
from kattn.arguments import check_integers, error, is_integer
from kattn.block_rule import registered_rule
from kattn.masks.checks import REAL_STEP, bool_tensor, check_broadcast, int_tensor
from kattn.masks.mask import SOME, Mask, summarized


@registered_rule("kattn")
class Padding(Mask):
    """Key j of item b is visible, to all queries, if `keys[b, j]` is True: it is a real step.

    This is the polarity of Keras and of `attention_mask` in Hugging Face Transformers. PyTorch's
    `key_padding_mask` means the opposite (True = padding); pass it as `~key_padding_mask`. Nothing
    can tell the two apart, as they are both boolean.

    Args:
        keys: Bool array, `(B, S)`. True = real step, False = padding.

    Raises:
        ValueError: If `keys` is a list, not boolean, or not of rank 2.

    Example:
        >>> kattn.masks.Padding(np.array([[True, True, False]]))[0:3, 0:3]
        [[[[True, True, False]]]]
        >>> key_padding_mask = np.array([[False, False, True]])  # of PyTorch
        >>> kattn.masks.Padding(~key_padding_mask)[0:3, 0:3]
        [[[[True, True, False]]]]
    """

    keys: Any

    array_fields = ("keys",)

    def __post_init__(self):
        keys = bool_tensor(self.keys, "keys", ("(B, S)",), REAL_STEP)
        object.__setattr__(self, "keys", keys)

    def block(self, queries, keys, offset=0):
        return keys.cut(self.keys, -1)[..., None, None, :]

    def padded(self, queries, keys):
        return self.unchecked(keys=backend.pad(self.keys, ((0, 0), (0, keys))))

    def check(self, batch, heads, queries, keys):
        check_broadcast(self.keys, "keys", (batch, keys), "(B, S)")


@registered_rule("kattn")
class Prefix(Mask):
    """Key j of item b is visible, to all queries, if j < length[b].

    `Causal() | Prefix(n)` is the mask of a prefix language model: the first n steps see each
    other, and later steps what comes before them. `Causal() & (Window(w) | Prefix(4))` keeps the
    first four keys visible to every query; they serve as attention sinks.

    Args:
        length: Number of visible keys: an integer >= 1; or an integer array `(B,)`, one for each
            item.

    Raises:
        ValueError: If `length` is neither an integer >= 1 nor an integer array of rank 1.

    Example:
        >>> (kattn.masks.Causal() | kattn.masks.Prefix(2))[0:3, 0:3]
        [[[[True, True, False], [True, True, False], [True, True, True]]]]
        >>> kattn.masks.Prefix(np.array([1, 3]))[0:3, 0:3]
        [[[[True, False, False]]], [[[True, True, True]]]]

    Reference:
        Raffel et al. 2019 (T5), sec. 3.2.1, https://arxiv.org/abs/1910.10683
        Sinks: Xiao et al. 2023 (StreamingLLM), sec. 3.2, https://arxiv.org/abs/2309.17453
    """

    length: Any

    array_fields = ("length",)

    def __post_init__(self):
        if isinstance(self.length, int):
            check_integers(1, length=self.length)
        else:
            object.__setattr__(self, "length", int_tensor(self.length, "length", "(B,)"))

    @property
    def is_static(self):
        """Whether the length is one integer for all items."""
        return isinstance(self.length, int)

    def block(self, queries, keys, offset=0):
        length = self.length if self.is_static else self.length[:, None, None, None]
        return keys.along(-1) < length

    def coverage(self, rows, columns):
        if not self.is_static:
            return SOME
        first, last = columns
        return summarized(nothing=first >= self.length, everything=last < self.length)

    def check(self, batch, heads, queries, keys):
        if not self.is_static:
            check_broadcast(self.length, "length", (batch,), "(B,)")


@registered_rule("kattn")
class Global(Mask):
    """Query i sees key j if one of the two is a global token.

    Global tokens see all keys, and all queries see them. `Window(256) | Global([0])` is the
    pattern of the Longformer.

    Args:
        tokens: Positions of the global tokens on the key axis, one or more integers >= 0.

    Raises:
        ValueError: If `tokens` is empty, or one of them is not an integer >= 0.

    Example:
        >>> kattn.masks.Global([0])[0:3, 0:3]
        [[[[True, True, True], [True, False, False], [True, False, False]]]]

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150
    """

    tokens: tuple[int, ...]

    def __post_init__(self):
        tokens = tuple(self.tokens)
        if not tokens or not all(is_integer(token) and token >= 0 for token in tokens):
            raise error("`tokens` must be one or more integers >= 0", tokens=self.tokens)
        object.__setattr__(self, "tokens", tuple(sorted(set(tokens))))

    def block(self, queries, keys, offset=0):
        rows, columns = queries.along(-2) + offset, keys.along(-1)
        return ops.logical_or(self._contains(rows), self._contains(columns))

    def coverage(self, rows, columns):
        counts = [
            (sum(first <= token <= last for token in self.tokens), last - first + 1)
            for first, last in (rows, columns)
        ]
        return summarized(
            nothing=all(count == 0 for count, _ in counts),
            everything=any(count == size for count, size in counts),
        )

    def _contains(self, positions):
        among = positions == self.tokens[0]
        for token in self.tokens[1:]:
            among = ops.logical_or(among, positions == token)
        return among


@registered_rule("kattn")
class Segments(Mask):
    """Query i of item b sees key j if both are of the same segment: packed sequences.

    Several sequences that lie one behind the other in one item then attend as if each were alone.
    `positions()` start again at 0 with each segment; attention layers pass them to their
    `position=`.

    Args:
        ids: Number of the segment of each step, an integer array `(B, S)`. Negative = padding,
            which sees nothing and which nothing sees.

    Raises:
        ValueError: If `ids` are not integers of rank 2.

    Example:
        >>> mask = kattn.masks.Segments(np.array([[0, 0, 1]]))
        >>> mask[0:3, 0:3]
        [[[[True, True, False], [True, True, False], [False, False, True]]]]
        >>> mask.positions()
        [[0, 1, 0]]

    Reference:
        Krell et al. 2021, https://arxiv.org/abs/2107.02027
    """

    ids: Any

    array_fields = ("ids",)

    def __post_init__(self):
        object.__setattr__(self, "ids", int_tensor(self.ids, "ids", "(B, S)"))

    def block(self, queries, keys, offset=0):
        rows = queries.shift(offset).cut(self.ids, -1)[..., None, :, None]
        columns = keys.cut(self.ids, -1)[..., None, None, :]
        return ops.logical_and(rows == columns, columns >= 0)

    def positions(self):
        """The position of each step within its own segment.

        A segment is a run of equal ids.

        Returns:
            `(B, S)` int32: how many steps of the same segment precede the step.
        """
        steps = ops.arange(ops.shape(self.ids)[1], dtype="int32")
        index = ops.broadcast_to(steps, ops.shape(self.ids))
        # Step 0 is 0 either way.
        first = ops.where(self.ids == ops.roll(self.ids, 1, axis=1), 0, index)
        return index - backend.running_maximum(first)

    def padded(self, queries, keys):
        # As many ids as there are queries or keys; what the added ones say is never looked at.
        are_known = isinstance(queries, int) and isinstance(keys, int)
        more = max(queries, keys) if are_known else ops.maximum(queries, keys)
        ids = backend.pad(self.ids, ((0, 0), (0, more)), -1)
        return self.unchecked(ids=ids)

    def check(self, batch, heads, queries, keys):
        check_broadcast(self.ids, "ids", (batch, keys), "(B, S)")
        if is_integer(queries) and is_integer(keys) and queries > keys:
            rule = (
                "`ids` of Segments are those of the keys, of which the queries are the last: there "
                "must be at least as many keys as queries"
            )
            raise error(rule, T=queries, S=keys)
