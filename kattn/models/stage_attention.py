"""The attention that a CNN can have after its stages, by name."""

import keras

from kattn import arguments, layers

# Layers that mix cells or channels, and begin as the identity by a normalisation of gain 0.
ADDED = (
    "bottleneck",
    "window",
    "shifted_window",
    "grid",
    "neighborhood",
    "axial",
    "cross_covariance",
    "deformable",
)
# Layers whose output takes the place of their input.
GATES = {
    "squeeze_excite": layers.SqueezeExcite,
    "efficient_channel": layers.EfficientChannelAttention,
    "cbam": layers.CBAM,
    "coordinate": layers.CoordinateAttention,
    "global_context": layers.GlobalContext,
}
NAMES = ("self", *ADDED, *GATES)


def attend(x, kind, *, num_heads, window_size, key_stride, data_format, name):
    """A symbolic image after an attention layer.

    Args:
        x: Symbolic image, `(B, H, W, C)` or `(B, C, H, W)`.
        kind: Name of the attention, one of `NAMES`; or a function of `name` that returns a layer.
        num_heads: Number of attention heads, where there are any.
        window_size: Number of cells a side of windows and neighbourhoods.
        key_stride: Downsampling factor of the key grid of "self" and "deformable".
        data_format: "channels_last" or "channels_first".
        name: Name of the layer.

    Raises:
        ValueError: If the name is unknown, or if the layer does not fit the image.
    """
    if callable(kind):
        return kind(name=name)(x)
    arguments.check_choice(NAMES, attention=kind)
    options = {"data_format": data_format, "name": name}
    is_last = data_format == "channels_last"
    *sides, channels = x.shape[1:] if is_last else (*x.shape[2:], x.shape[1])
    if kind == "global_context":  # its hidden layer must have two units
        options["ratio"] = max(min(16, channels // 2), 1)
    if kind in GATES:
        return GATES[kind](**options)(x)
    if kind == "self":
        return layers.SelfAttention2D(num_heads, key_stride=key_stride, **options)(x)
    y = _mixing(kind, sides, channels, num_heads, window_size, key_stride, options)(x)
    norm = keras.layers.BatchNormalization(
        axis=-1 if is_last else 1, momentum=0.9, gamma_initializer="zeros", name=f"{name}_norm"
    )
    return keras.layers.Add(name=f"{name}_add")([x, norm(y)])


def _mixing(kind, sides, channels, num_heads, window_size, key_stride, options):
    """A layer of `ADDED`, with relative positions where it has positions."""
    window = (window_size, window_size)
    in_windows = {"window_size": window, "position": layers.RelativeTable(window), **options}
    makers = {
        "bottleneck": lambda: _bottleneck(sides, channels, num_heads, options),
        "window": lambda: layers.WindowAttention2D(num_heads, **in_windows),
        "shifted_window": lambda: layers.WindowAttention2D(
            num_heads, shift=window_size // 2, **in_windows
        ),
        "grid": lambda: layers.WindowAttention2D(num_heads, partition="grid", **in_windows),
        "neighborhood": lambda: layers.NeighborhoodAttention2D(
            num_heads, window, position=layers.RelativeTable(window), **options
        ),
        "axial": lambda: layers.AxialAttention2D(num_heads, **options),
        "cross_covariance": lambda: layers.CrossCovarianceAttention(num_heads, **options),
        "deformable": lambda: layers.DeformableAttention2D(
            num_heads, key_stride=key_stride, **options
        ),
    }
    return makers[kind]()


def _bottleneck(sides, channels, num_heads, options):
    """The attention of BoTNet, whose heads are together as wide as the image."""
    if None in sides:
        raise arguments.error(
            '`input_shape` must have known sides with the attention "bottleneck", whose positions '
            "are learned for them",
            sides=tuple(sides),
        )
    if channels % num_heads:
        raise arguments.error(
            "`num_heads` must divide the filters of a stage with attention",
            num_heads=num_heads,
            filters=channels,
        )
    width = channels // num_heads
    position = layers.RelativeTable(tuple(sides), by_query=True)
    return layers.SelfAttention2D(
        num_heads, width, value_dim=width, use_residual=False, position=position, **options
    )
