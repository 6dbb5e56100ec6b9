"""What the layers have in common whose channels each have a state that passes from step to step."""

from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.ops.cache import count_steps
from kattn.ops.recurrence import IMPLEMENTATIONS, RecurrentState, initial_recurrent_state


class RecurrentLayer(QuantizableLayer):
    """Base of the layers with a state `(B, channels)`: the call, decoding and the config.

    A subclass sets `_channels` when it is built, and has

        _advance(x, cache, padding, starts)    the output, and the state after x

    Args:
        projections: The `ProjectionOptions` of all projections of the layer.
        implementation: One of those of `kattn.ops.linear_recurrence`.
        **kwargs: The arguments of any Keras layer.
    """

    def __init__(self, *, projections, implementation, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_choice(IMPLEMENTATIONS, implementation=implementation)
        self.implementation = implementation
        self._projections = projections

    def build(self, x_shape):
        check_sequence("x", x_shape)
        self._build(x_shape[-1])
        self.built = True

    def call(self, x, mask=None, starts=None):
        x, padding = read_padded(x, mask)
        cache = initial_recurrent_state(ops.shape(x)[0], self._channels)
        return self._advance(x, cache, padding, starts)[0]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A `kattn.ops.RecurrentState`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        return initial_recurrent_state(batch_size, self._channels)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: State that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the state as it is. It is combined with the Keras mask
                of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, units)`; and the state after these steps.

        Raises:
            ValueError: If `mask` is of another kind, or shapes do not fit.
        """
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        y, state = self._advance(x, cache, padding, None)
        length = cache.length + count_steps(ops.shape(x)[1], padding)
        return y, RecurrentState(state, length)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def get_config(self):
        return {
            **super().get_config(),
            **self._projections.get_config(),
            "implementation": self.implementation,
        }
