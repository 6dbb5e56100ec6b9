"""Position layers that change the inputs."""

from kattn.layers.position.position import Position


class InputPosition(Position):
    """Base class of positions that are added to the inputs. Override `embed`.

    An attention layer with `position=` of this kind projects `embed(x, positions)` in place of
    its input `x`. Called alone, the layer returns `embed(x, positions)`.

    Shapes: B batch, T steps, C width.

    Args:
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Attributes:
        is_absolute: Whether a shift of all positions changes the result. If True, which is the
            default, an attention layer counts positions from the first real step of each item,
            so that padding at the left changes nothing. A subclass whose result does not change
            may set it to False.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        positions: Positions of the steps, int32, shape `(T,)` or `(B, T)`. None stands for 0 to
            T - 1.

    Returns:
        `(B, T, C)`, with the Keras mask of `x`.

    Raises:
        ValueError: When attached to attention layers whose sizes cannot share its weights.

    Example:
        >>> class CountBack(kattn.layers.InputPosition):
        ...     '''Adds a number that falls from 1 at step 0 to 0 at step 511.'''
        ...     def embed(self, x, positions=None):
        ...         if positions is None:
        ...             positions = keras.ops.arange(x.shape[1])
        ...         return x + keras.ops.cast(511 - positions, x.dtype)[..., None] / 511
        >>> layer = kattn.layers.SelfAttention(4, position=CountBack())
        >>> tuple(layer(keras.random.normal((2, 10, 16))).shape)
        (2, 10, 16)

    Reference:
        Vaswani et al. 2017, sec. 3.5, https://arxiv.org/abs/1706.03762
    """

    is_absolute = True

    def build(self, x_shape):
        self.attach(width=x_shape[-1], num_heads=None, key_dim=None)

    def call(self, x, positions=None):
        return self.embed(x, positions)

    def embed(self, x, positions=None):
        """The input with its positions.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            positions: Positions of the steps, int32, shape `(T,)` or `(B, T)`; on a grid of A
                axes `(T, A)` or `(B, T, A)`. None stands for 0 to T - 1.

        Returns:
            `(B, T, C)` of the dtype of `x`.
        """
        raise NotImplementedError("An InputPosition must override `embed`")

    def compute_output_shape(self, x_shape):
        return x_shape
