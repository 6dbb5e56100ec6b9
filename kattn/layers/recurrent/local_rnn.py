"""A recurrent layer that reads, for each step, the last steps alone (Wang et al., 2019)."""

from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding, silence
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.recurrent.held_rnn import read_rnn
from kattn.layers.transformer.transformer_block import part_config
from kattn.ops.cache import real_first


class LocalRNN(QuantizableLayer):
    """The last output of a recurrent layer for x_{t-K+1}, ..., x_t, at each step t.

    All windows are read at once, as a batch of B T sequences of K steps. Before the first step of a
    sequence there are zeros. The real steps are counted: padding between two of them is skipped.

    Args:
        rnn: Recurrent layer of Keras that returns its last output alone, of the width of its input.
        window: Number of steps of a window, K.
        **kwargs: `name` and `dtype`.
    """

    def __init__(self, rnn, window, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(1, window=window)
        self.rnn = read_rnn(rnn, sequences=False)
        self.window = window
        if self.rnn.stateful:
            rule = "`rnn` must not be stateful, as it begins anew in each window"
            raise arguments.error(rule, stateful=True)

    def build(self, x_shape):
        check_sequence("x", x_shape)
        shape = None, self.window, x_shape[-1]
        if not self.rnn.built:
            self.rnn.build(shape)
        width = self.rnn.compute_output_shape(shape)[-1]
        if width != x_shape[-1]:
            raise arguments.error(
                "`rnn` must give outputs of the width of the input, to which they are added",
                rnn_width=width,
                width=x_shape[-1],
            )
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = read_padded(x, mask)
        if 0 in x.shape[:2]:
            return x
        before = 0 * ops.repeat(x[:, :1], self.window - 1, axis=1)
        return self._read(before, x, padding, training)[0]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The K - 1 steps before the first, `(B, K - 1, C)`: zeros."""
        check_decodes(self, batch_size, length, context, context_mask)
        width = self.rnn.compute_output_shape((None, self.window, None))[-1]
        return ops.zeros((batch_size, self.window - 1, width), self.compute_dtype)

    def decode(self, x, cache, mask=None):
        """The outputs for new steps `(B, t, C)`, which are 0 at padding, and the new cache."""
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, self.compute_dtype)
        return self._read(cache, x, padding, training=False)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), "rnn": part_config(self.rnn), "window": self.window}

    def _read(self, before, x, padding, training):
        """The outputs for x, behind the K - 1 real steps before it; and those before the next."""
        if padding is None:
            y, steps = self._windows(before, x, training)
            # A copy: a slice would keep all steps in memory on PyTorch.
            return y, ops.copy(steps[:, ops.shape(x)[1] :])
        ranks = ops.cumsum(ops.cast(padding, "int32"), axis=1)  # from 1, among the real steps
        y, steps = self._windows(before, real_first(padding).cut(x, -2), training)
        last = ranks[:, -1:] + ops.arange(self.window - 1, dtype="int32")
        y = _at_steps(y, ops.maximum(ranks - 1, 0))
        return silence(y, padding), _at_steps(steps, last)

    def _windows(self, before, x, training):
        """The outputs for all steps of x, each of them real; and those of `before` and of x."""
        steps = ops.concatenate([before, x], axis=1)  # (B, K - 1 + T, C)
        ends = [k - self.window + 1 or None for k in range(self.window)]
        windows = ops.stack([steps[:, k:end] for k, end in enumerate(ends)], axis=2)
        flat = ops.reshape(windows, (-1, *windows.shape[2:]))  # (B T, K, C)
        y = ops.cast(self.rnn(flat, training=training), self.compute_dtype)
        return ops.reshape(y, (*ops.shape(x)[:2], y.shape[-1])), steps


def _at_steps(x, index):
    """x[b, index[b, t]]."""
    return ops.take_along_axis(x, index[..., None], axis=1)
