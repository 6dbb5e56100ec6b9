"""What an attention layer asks of its `position=`."""

import keras


class Position(keras.layers.Layer):
    """Where steps are: added to the inputs, turned into queries and keys, or added to the scores.

    A scheme is a subclass that defines one of `embed`, `rotate` and `bias`, and `attach` where it
    has weights. An attention layer calls all of them; called alone, a scheme does its own.

    Args:
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: What the scheme changes: here `(B, T, C)`, see the subclass.
        positions: As in `embed`.

    Returns:
        `x`, changed.

    Raises:
        ValueError: See the subclass.

    Example:
        >>> class Reversed(Position):  # counts from the end of 512 steps
        ...     def embed(self, x, positions=None):
        ...         steps = keras.ops.arange(x.shape[1]) if positions is None else positions
        ...         return x + keras.ops.cast(511 - steps, x.dtype)[..., None] / 512
        >>> layer = SelfAttention(4, position=Reversed())

    Reference:
        Dufter et al. 2021 (a survey), https://arxiv.org/abs/2102.11090
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    # Whether a shift of all positions changes the result: then padding at the left must be known.
    is_absolute = False

    def call(self, x, positions=None):
        return self.embed(x, positions)

    def attach(self, *, width, num_heads, key_dim):
        """Makes the weights for an attention layer of these sizes; again with the same: nothing.

        Args:
            width: C of the layer's input.
            num_heads: N.
            key_dim: D.
        """

    def embed(self, x, positions=None):
        """The input of the projections.

        Args:
            x: `(B, T, C)` float.
            positions: `(T,)` or `(B, T)` int32, or `(T, A)` or `(B, T, A)` on A axes; None for
                0 to T - 1.

        Returns:
            `(B, T, C)`.
        """
        return x

    def rotate(self, x, positions=None):
        """Queries or keys.

        Args:
            x: `(B, T, N, D)` float.
            positions: As in `embed`.

        Returns:
            `(B, T, N, D)`.
        """
        return x

    def bias(self, query):
        """What is added to the scores of a sequence.

        Args:
            query: `(B, T, N, D)` float.

        Returns:
            A `kattn.biases.Bias`, or None.
        """
        return

    def map_bias(self, query, sides, stride):
        """What is added to the scores of a map, whose cells, row-major, are the steps.

        Args:
            query: `(B, T, N, D)` float.
            sides: Of the map of queries.
            stride: A cell of the map of keys is this many cells of that of the queries wide.

        Returns:
            A `kattn.biases.Bias`, or None.

        Raises:
            ValueError: If the scheme has a bias, but of sequences only.
        """
        if type(self).bias is not Position.bias:
            raise ValueError(
                f"A bias of a sequence knows no map; received: position={self!r}, sides={sides}"
            )
