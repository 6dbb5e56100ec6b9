"""PatchTST: forecasts of time series by a Transformer over patches (Nie et al., 2023)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.initializers import numbered
from kattn.layers.position.learned_positions import LearnedPositions
from kattn.layers.transformer.block_stack import BlockStack
from kattn.models.published_sizes import TIME_SERIES_MODELS
from kattn.models.transformer_model import TransformerModel


@keras.saving.register_keras_serializable("kattn")
class TimeSeriesTransformer(TransformerModel):
    """The next H steps of each channel, by its last L steps alone.

    Each channel is brought to mean 0 and variance 1 over its L steps and cut into patches that
    overlap. These pass a projection, learned positions and `num_layers` blocks; one matrix makes H
    steps of all that comes out, which get the channel's mean and variance back. All channels have
    the same weights, so that a model serves any number of them.

    The defaults are those that the authors' code takes for the data set ETTh1. Published sizes, for
    `from_size`, which needs `horizon`, too: "patchtst-42" and "patchtst-64" (patches), and for
    small data sets "patchtst-42-reduced" and "patchtst-64-reduced".

    Shapes: B batch, L input steps, M channels, H steps ahead, P patches.

    Args:
        horizon: Number of steps that are forecast, H.
        input_length: Number of steps that the model reads, L.
        num_layers: Number of blocks.
        num_heads: Number of attention heads of each block.
        width: Number of channels of the vectors that the blocks read and give.
        patch_length: Number of steps of a patch.
        stride: Number of steps from one patch to the next. The last step is repeated as often
            behind the series.
        head_dropout: Fraction of the forecast steps that are dropped during training, in [0, 1).
        hidden_dim: Number of hidden channels of the feed-forward networks.
        norm: Norm of the blocks: "layer", "rms", a normalisation layer or a function that makes
            one. None for batch normalisation, which Nie et al. take.
        placement: Where the norms stand, as in `TransformerEncoderBlock`.
        dropout: Fraction of the channels that are dropped behind the projection of the patches and
            each part of a block, in [0, 1).
        hidden_dropout: Fraction of the hidden channels of the feed-forward networks that are
            dropped. None for `dropout`.
        kernel_initializer: Initializer of all matrices. None for a uniform distribution of
            variance 1 / (3 * number of inputs), which is PyTorch's, and so the authors'.
        **kwargs: Arguments of the blocks, and `name`, `dtype` and `trainable`, as for any Keras
            layer. The other arguments of the blocks are those of `TransformerLM`.

    Call args:
        x: Series, float, shape `(B, L, M)`, without padding.
        training: Whether anything is dropped.

    Returns:
        Forecast `(B, H, M)`, float32 under any dtype policy, as series may have any scale.

    Raises:
        ValueError: If an argument is out of range; when built or called, if `x` is not of rank 3 or
            does not have L steps.

    Example:
        >>> model = kattn.models.TimeSeriesTransformer(horizon=96)
        >>> hours = keras.random.normal((4, 336, 7))
        >>> model(hours).shape
        (4, 96, 7)

    Reference:
        Nie et al. 2023, sec. 3.1, https://arxiv.org/abs/2211.14730, and the script
        `PatchTST_supervised/scripts/PatchTST/etth1.sh` of https://github.com/yuqinie98/PatchTST.
        Their code also adds the scores of each block to those of the next; this model does not.
        Normalisation of each series: Kim et al. 2022, https://openreview.net/forum?id=cGDAkQo1C0p,
        here without learned gains.
    """

    sizes = TIME_SERIES_MODELS

    def __init__(
        self,
        horizon,
        *,
        input_length=336,
        num_layers=3,
        num_heads=4,
        width=16,
        patch_length=16,
        stride=8,
        head_dropout=0.0,
        hidden_dim=128,
        norm=None,
        placement="post",
        dropout=0.3,
        hidden_dropout=None,
        kernel_initializer=None,
        **kwargs,
    ):
        if norm is None:
            norm = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, dtype=kwargs.get("dtype")
            )
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        super().__init__(
            num_layers,
            num_heads,
            width,
            hidden_dim=hidden_dim,
            norm=norm,
            placement=placement,
            dropout=dropout,
            hidden_dropout=dropout if hidden_dropout is None else hidden_dropout,
            kernel_initializer=kernel_initializer,
            autocast=False,  # half precision would round the series before they are normalised
            **kwargs,
        )
        self.supports_masking = False
        sizes = {"input_length": input_length, "patch_length": patch_length, "stride": stride}
        arguments.check_integers(1, horizon=horizon, **sizes)
        if input_length < patch_length:
            raise arguments.error("`input_length` must be at least `patch_length`", **sizes)
        self.horizon = horizon
        self.input_length = input_length
        self.patch_length = patch_length
        self.stride = stride
        self.head_dropout = head_dropout
        options, policy = self.options, self.dtype_policy
        self._projection = self._dense("projection", width, 0)
        self._position = LearnedPositions(
            self._num_patches,
            initializer=keras.initializers.RandomUniform(-0.02, 0.02),
            dtype=policy,
            name="position",
        )
        self._dropout = self._new_dropout(dropout, 0)
        blocks = options.encoder_blocks(policy)
        self._stack = BlockStack(blocks, options.final_norm, dtype=policy, name="encoder")
        self._head = self._dense("head", horizon, 1)
        self._head_dropout = self._new_dropout(head_dropout, num_layers)

    def build(self, x_shape):
        self._check(x_shape)
        patches, width = self._num_patches, self.options.width
        self._projection.build((None, patches, self.patch_length))
        for layer in (self._position, self._dropout, self._stack):
            layer.build((None, patches, width))
        self._head.build((None, x_shape[-1], patches * width))
        self._head_dropout.build((None, x_shape[-1], self.horizon))
        self.built = True

    def call(self, x, training=None):
        self._check(x.shape)
        channels = x.shape[-1]
        x = ops.cast(ops.swapaxes(x, 1, 2), "float32")  # (B, M, L)
        mean = ops.mean(x, axis=-1, keepdims=True)  # (B, M, 1)
        deviation = ops.sqrt(ops.var(x, axis=-1, keepdims=True) + 1e-5)
        h = self._patches((x - mean) / deviation)  # (B * M, P, patch_length)
        h = self._position(self._projection(h))  # (B * M, P, C)
        h = self._stack(self._dropout(h, training=training), training=training)
        h = ops.reshape(h, (-1, channels, self._num_patches * self.options.width))
        h = self._head_dropout(self._head(h), training=training)  # (B, M, H)
        return ops.swapaxes(ops.cast(h, "float32") * deviation + mean, 1, 2)  # (B, H, M)

    def get_config(self):
        return {
            **super().get_config(),
            "horizon": self.horizon,
            "input_length": self.input_length,
            "patch_length": self.patch_length,
            "stride": self.stride,
            "head_dropout": self.head_dropout,
        }

    @property
    def _num_patches(self):
        return (self.input_length + self.stride - self.patch_length) // self.stride + 1

    def _patches(self, x):
        """The patches of series `(B, M, L)`, of all channels as if they were items of a batch."""
        end = ops.repeat(x[..., -1:], self.stride, axis=-1)
        x = ops.concatenate([x, end], axis=-1)
        x = ops.extract_sequences(x, self.patch_length, self.stride)  # (B, M, P, patch_length)
        return ops.reshape(x, (-1, self._num_patches, self.patch_length))

    def _dense(self, name, units, number):
        """A projection outside of the blocks, with a copy of their initializer."""
        initializer = numbered(self.options.kernel_initializer, number)
        return keras.layers.Dense(
            units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )

    def _new_dropout(self, rate, layer):
        seed = self.options.seed_of(layer, 9)
        return keras.layers.Dropout(rate, seed=seed, dtype=self.dtype_policy)

    def _check(self, shape):
        """Raises ValueError unless the shape is that of series of the right length."""
        if len(shape) != 3 or shape[1] not in (None, self.input_length) or shape[2] is None:
            raise ValueError(
                "`x` must have shape (batch, input_length, channels) with a known number of "
                f"channels; received: x.shape={tuple(shape)}, input_length={self.input_length}"
            )
