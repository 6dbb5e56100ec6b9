"""Position layers that change queries and keys."""

from kattn.layers.position.position import Position


class HeadPosition(Position):
    """Base class of positions that are applied to queries and keys. Override `rotate`.

    An attention layer with `position=` of this kind computes its scores from
    `rotate(query, positions)` and `rotate(key, positions)`. Called alone, the layer returns
    `rotate(x, positions)`.

    Shapes: B batch, T steps, N heads, D head width.

    Args:
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        x: Queries or keys, float, shape `(B, T, N, D)`.
        positions: Positions of the steps, integers or floats, shape `(T,)` or `(B, T)`. None
            stands for 0 to T - 1.

    Returns:
        `(B, T, N, D)`, with the Keras mask of `x`.

    Raises:
        ValueError: When attached to attention layers whose sizes cannot share its weights.

    Example:
        >>> class HalfTurns(kattn.layers.HeadPosition):
        ...     '''Changes the sign of queries and keys at every second step.'''
        ...     def rotate(self, x, positions=None):
        ...         if positions is None:
        ...             positions = keras.ops.arange(x.shape[1])
        ...         sign = 1 - 2 * keras.ops.cast(positions % 2, x.dtype)
        ...         return x * sign[..., None, None]
        >>> layer = kattn.layers.SelfAttention(4, position=HalfTurns())
        >>> tuple(layer(keras.random.normal((2, 10, 16))).shape)
        (2, 10, 16)

    Reference:
        Su et al. 2021, sec. 3.2, https://arxiv.org/abs/2104.09864
    """

    def build(self, x_shape):
        self.attach(width=None, num_heads=x_shape[-2], key_dim=x_shape[-1])

    def call(self, x, positions=None):
        return self.rotate(x, positions)

    def rotate(self, x, positions=None):
        """Queries or keys with their positions.

        Args:
            x: Queries or keys, float, shape `(B, T, N, D)`.
            positions: Positions of the steps, integers or floats, shape `(T,)` or `(B, T)`; on a
                grid of A axes `(T, A)` or `(B, T, A)`. None stands for 0 to T - 1.

        Returns:
            `(B, T, N, D)` of the dtype of `x`.
        """
        raise NotImplementedError("A HeadPosition must override `rotate`")

    def compute_output_shape(self, x_shape):
        return x_shape
