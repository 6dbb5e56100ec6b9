"""The sizes of query, key and value heads, as one frozen value."""

import dataclasses

from keras import ops

from kattn import arguments
from kattn.ops.rows import split_channels as split_channels


@dataclasses.dataclass(frozen=True)
class HeadSizes:
    """How many heads queries, keys and values have, and how wide they are.

    Args:
        heads: Number of heads of the output, N.
        key_heads: Number of key/value heads, K. N is a multiple of it.
        key_dim: Width of a query or a key of one head, D.
        value_dim: Width of a value of one head, Dv.
        maps: Number of maps of attention weights for each head. Queries and keys have that many
            parts; values have one.
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    maps: int = 1

    @classmethod
    def of(cls, layer, width, *, maps=1):
        """The sizes that a layer's arguments mean for inputs of `width` channels.

        Args:
            layer: Layer with `num_heads`, `key_dim`, `value_dim` and, if keys may be shared,
                `num_key_value_heads`.
            width: Number of channels of the input, C.
            maps: Number of maps of attention weights for each head.

        Returns:
            A `HeadSizes`. Where `key_dim` is None it is C / N / maps, and where `value_dim` is
            None it is maps * D: the heads side by side are as wide as the input.

        Raises:
            ValueError: If `key_dim` is None and the width cannot be divided.
        """
        heads, key_dim = layer.num_heads, layer.key_dim
        if key_dim is None:
            if width % (maps * heads):
                divisor = "`num_heads`" if maps == 1 else f"{maps} * `num_heads`"
                raise arguments.error(
                    f"The width of the input must be divisible by {divisor} where `key_dim` is "
                    "None",
                    width=width,
                    num_heads=heads,
                )
            key_dim = width // (maps * heads)
        key_heads = getattr(layer, "num_key_value_heads", None) or heads
        return cls(heads, key_heads, key_dim, layer.value_dim or maps * key_dim, maps)

    @property
    def query_width(self):
        """Channels of all queries side by side."""
        return self.maps * self.heads * self.key_dim

    @property
    def key_width(self):
        """Channels of all keys side by side."""
        return self.maps * self.key_heads * self.key_dim

    @property
    def value_width(self):
        """Channels of all values side by side."""
        return self.key_heads * self.value_dim

    @property
    def output_width(self):
        """Channels of the heads' outputs side by side."""
        return self.heads * self.value_dim

    def split_query(self, x):
        """`(B, T, maps * N * D)` to `(B, T, maps * N, D)`."""
        return split_heads(x, self.maps * self.heads)

    def split_key(self, x):
        """`(B, S, maps * K * D)` to `(B, S, maps * K, D)`."""
        return split_heads(x, self.maps * self.key_heads)

    def split_value(self, x):
        """`(B, S, K * Dv)` to `(B, S, K, Dv)`."""
        return split_heads(x, self.key_heads)

    def split_qkv(self, x):
        """Queries, keys and values by head, of their channels side by side in `x`."""
        q, k, v = split_channels(x, (self.query_width, self.key_width, self.value_width))
        return self.split_query(q), self.split_key(k), self.split_value(v)

    def split_key_value(self, x):
        """Keys and values by head, of their channels side by side in `x`."""
        k, v = split_channels(x, (self.key_width, self.value_width))
        return self.split_key(k), self.split_value(v)


def check_heads(num_heads, key_dim, value_dim, num_key_value_heads=None):
    """Raises ValueError unless these constructor arguments of an attention layer fit together."""
    arguments.check_integers(1, num_heads=num_heads)
    arguments.check_optional_integers(
        1, key_dim=key_dim, value_dim=value_dim, num_key_value_heads=num_key_value_heads
    )
    if num_key_value_heads is not None and num_heads % num_key_value_heads:
        raise arguments.error(
            "`num_heads` must be a multiple of `num_key_value_heads`",
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
        )


def split_heads(x, heads):
    """`(B, T, heads * D)` to `(B, T, heads, D)`."""
    batch, steps, width = ops.shape(x)
    return ops.reshape(x, (batch, steps, heads, width // heads))


def merge_heads(x):
    """`(B, T, heads, D)` to `(B, T, heads * D)`."""
    batch, steps, heads, width = ops.shape(x)
    return ops.reshape(x, (batch, steps, heads * width))
