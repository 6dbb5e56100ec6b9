"""Position layers that change the inputs."""

from keras import ops

from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_new_masks
from kattn.layers.position.position import Position
from kattn.ops import masking
from kattn.ops.cache import PositionCache, count_steps, next_positions


class InputPosition(Position):
    """Base class of positions that are added to the inputs. Override `embed`.

    An attention layer with `position=` of this kind projects `embed(x, positions)` in place of
    its input `x`. Called alone, the layer returns `embed(x, positions)`; it decodes step by step,
    too.

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

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode` that counts the steps of each sequence.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The cache has one size for any.
            context: Must be None: the layer reads its own sequence only.
            context_mask: Must be None, as there is no context.

        Returns:
            A `kattn.ops.PositionCache`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, if there is a
                context, or if the layer has no positions for so many steps.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        return PositionCache(ops.zeros((batch_size,), "int32"))

    def decode(self, x, cache, mask=None):
        """New steps of a sequence with their positions, which go on where the cache ends.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which is not counted. Or a `kattn.masks.Mask` over the positions of
                the whole sequence: absolute positions begin again in each of its segments. It is
                combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the steps with their positions, shape `(B, t, C)`, which mean nothing at
            padding; and the cache with the new steps.

        Raises:
            ValueError: If `mask` is of another kind, or if shapes do not fit.
        """
        x, padding, allowed = read_new_masks(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        steps = x.shape[1]
        positions = next_positions(cache, steps, padding)
        if self.is_absolute:
            positions = masking.positions_in_segments(allowed, positions)
        length = cache.length + count_steps(steps, padding)
        return self.embed(x, positions), PositionCache(length)

    def compute_output_shape(self, x_shape):
        return x_shape
