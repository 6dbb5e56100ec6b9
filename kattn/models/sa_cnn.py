"""A residual CNN for images with self-attention after the stages one chooses."""

from collections.abc import Callable, Sequence

import keras
from keras import layers

from kattn import arguments
from kattn.models import stage_attention


def sa_cnn(
    input_shape: Sequence[int | None],
    num_classes: int,
    *,
    filters: Sequence[int] = (32, 64, 128),
    blocks_per_stage: int = 1,
    attention_after: Sequence[int] = (1,),
    attention: str | Callable | Sequence[str | Callable] = "self",
    num_heads: int = 1,
    window_size: int = 7,
    key_stride: int = 1,
    stem_stride: int = 1,
    dropout: float = 0.0,
    data_format: str | None = None,
    name: str = "sa_cnn",
) -> keras.Model:
    """Stem, residual stages with attention between them, average over positions, logits.

    Stage i is `blocks_per_stage` blocks of relu(x + norm(conv(relu(norm(conv(x)))))) with
    `filters[i]` channels; each stage but the first begins by halving the sides (average pooling,
    rounded up). Attention layers start as the identity: "self" by its gain, the others that are no
    gates as x + norm(attention(x)), where the gain of the normalisation starts at 0.

    Args:
        input_shape: Shape of one image, `(H, W, C)`, or `(C, H, W)` for `"channels_first"`. H and
            W may be None.
        num_classes: Number of logits.
        filters: Number of channels of each stage.
        blocks_per_stage: Number of residual blocks of each stage.
        attention_after: Stages, counted from 0, that end with an attention layer. `()` makes a
            plain CNN.
        attention: Which attention: "self" (`SelfAttention2D` with a gain), "bottleneck" (that of
            BoTNet), "window", "shifted_window", "grid", "neighborhood", "axial",
            "cross_covariance", "deformable"; or a gate, "squeeze_excite", "efficient_channel",
            "cbam", "coordinate" or "global_context". Or a function that is called with the argument
            `name` and returns a layer, whose output then takes the place of its input. Or a
            sequence with one of these for each of `attention_after`.
        num_heads: Number of attention heads of each attention layer that has heads.
        window_size: Number of cells a side of windows, of the grid, and of neighbourhoods.
        key_stride: Downsampling factor of the key grid relative to the query grid, where the
            attention is "self" or "deformable".
        stem_stride: Stride of the first convolution; 2 saves three quarters of the work.
        dropout: Fraction of the features that are dropped before the logits, in [0, 1).
        data_format: `"channels_last"`, `"channels_first"`, or None for Keras's default.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from `(B, *input_shape)` float, scaled to about [-1, 1], to
        `(B, num_classes)` float32 logits. Layers are called `stem_conv`, `stage0_block0_conv1`,
        `stage0_attention`, `logits` and so on.

    Raises:
        ValueError: If `input_shape` does not have three entries, a size is below 1, or
            `attention_after` names a stage that does not exist; if `attention` is unknown, or a
            sequence of another length than `attention_after`; or if an attention layer does not
            fit its stage, for example if `num_heads` does not divide its filters.

    Reference:
        He et al. 2015, sec. 3, https://arxiv.org/abs/1512.03385 (blocks; they halve the sides by
        strided convolution); Zhang et al. 2018, sec. 3, https://arxiv.org/abs/1805.08318.

    Example:
        >>> model = sa_cnn((28, 28, 1), 10, attention_after=(1, 2), num_heads=2)
        >>> model(keras.random.normal((5, 28, 28, 1))).shape
        (5, 10)
    """
    sizes = {"num_classes": num_classes, "blocks_per_stage": blocks_per_stage}
    _check(input_shape, filters, attention_after, stem_stride=stem_stride, **sizes)
    kinds = _kinds(attention_after, attention)
    data_format = data_format or keras.config.image_data_format()
    axis = -1 if data_format == "channels_last" else 1

    def conv(x, width, size, name, strides=1):
        x = layers.Conv2D(
            width,
            size,
            strides,
            padding="same",
            use_bias=False,  # the normalisation after it has one
            kernel_initializer="he_normal",
            data_format=data_format,
            name=f"{name}_conv",
        )(x)
        return layers.BatchNormalization(axis=axis, momentum=0.9, name=f"{name}_norm")(x)

    def block(x, width, name):
        shortcut = x if x.shape[axis] == width else conv(x, width, 1, f"{name}_shortcut")
        x = layers.ReLU(name=f"{name}_relu1")(conv(x, width, 3, f"{name}_1"))
        x = layers.Add(name=f"{name}_add")([shortcut, conv(x, width, 3, f"{name}_2")])
        return layers.ReLU(name=f"{name}_relu2")(x)

    inputs = layers.Input(tuple(input_shape), name="image")
    x = layers.ReLU(name="stem_relu")(conv(inputs, filters[0], 3, "stem", stem_stride))
    for stage, width in enumerate(filters):
        if stage > 0:
            x = layers.AveragePooling2D(
                2, padding="same", data_format=data_format, name=f"stage{stage}_pool"
            )(x)
        for number in range(blocks_per_stage):
            x = block(x, width, f"stage{stage}_block{number}")
        if stage in kinds:
            x = stage_attention.attend(
                x,
                kinds[stage],
                num_heads=num_heads,
                window_size=window_size,
                key_stride=key_stride,
                data_format=data_format,
                name=f"stage{stage}_attention",
            )
    x = layers.GlobalAveragePooling2D(data_format=data_format, name="pool")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=name)


def _kinds(attention_after, attention):
    """The attention of each stage that has one."""
    if isinstance(attention, str) or callable(attention):
        return dict.fromkeys(attention_after, attention)
    if len(attention) != len(attention_after):
        raise arguments.error(
            "`attention` must be one for all stages of `attention_after`, or one for each of them",
            attention=tuple(attention),
            attention_after=tuple(attention_after),
        )
    return dict(zip(attention_after, attention, strict=True))


def _check(input_shape, filters, attention_after, **sizes):
    if len(input_shape) != 3:
        raise arguments.error(
            "`input_shape` must have three entries, height, width and channels",
            input_shape=tuple(input_shape),
        )
    arguments.check_integers(1, **sizes)
    if not filters or not all(arguments.is_integer(n) and n >= 1 for n in filters):
        raise arguments.error("`filters` must be one or more integers >= 1", filters=tuple(filters))
    if not all(0 <= stage < len(filters) for stage in attention_after):
        raise arguments.error(
            f"`attention_after` must name stages 0 to {len(filters) - 1}",
            attention_after=tuple(attention_after),
            filters=tuple(filters),
        )
