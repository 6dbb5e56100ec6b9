"""What self- and cross-attention have in common around the core: projections and their checks."""

import itertools

import keras
from keras import ops

ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "num_key_value_heads",
    "use_qk_norm",
    "softcap",
    "use_sinks",
    "use_gate",
    "dropout",
    "use_bias",
    "implementation",
    "seed",
)
KERNELS = ("auto", "dense", "fused", "chunked", "banded")


def check(layer):
    """Raises ValueError for constructor arguments out of range."""
    for name in ("num_heads", "key_dim", "value_dim", "num_key_value_heads", "window"):
        value = getattr(layer, name, None)
        if value is None and name != "num_heads":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1; received: {name}={value!r}")
    heads, key_heads = layer.num_heads, layer.num_key_value_heads
    if key_heads is not None and heads % key_heads:
        raise ValueError(
            "`num_heads` must be a multiple of `num_key_value_heads`; received: "
            f"num_heads={heads}, num_key_value_heads={key_heads}"
        )
    if not 0.0 <= layer.dropout < 1.0:
        raise ValueError(f"`dropout` must be in [0, 1); received: dropout={layer.dropout}")
    if layer.softcap is not None and not layer.softcap > 0.0:
        raise ValueError(f"`softcap` must be positive; received: softcap={layer.softcap}")
    if layer.implementation not in KERNELS:
        raise ValueError(
            f"`implementation` must be one of {', '.join(KERNELS)}; received: implementation={layer.implementation!r}"
        )


def check_rank(name, shape):
    """Raises ValueError unless the shape is (batch, steps, width) with a known width."""
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(
            f"`{name}` must have rank 3, (batch, steps, width), and a known width; "
            f"received: {name}.shape={tuple(shape)}"
        )


def sizes(layer, width):
    """N, K, D and Dv for inputs of `width` channels."""
    heads, key_dim = layer.num_heads, layer.key_dim
    if key_dim is None:
        if width % heads:
            raise ValueError(
                "The width of the input must be divisible by `num_heads` where `key_dim` is None; "
                f"received: width={width}, num_heads={heads}"
            )
        key_dim = width // heads
    return heads, layer.num_key_value_heads or heads, key_dim, layer.value_dim or key_dim


def dense(layer, sizes, name, width):
    """A built Dense layer whose columns are projections of these sizes, each initialised alone."""
    projection = keras.layers.Dense(
        sum(sizes),
        use_bias=layer.use_bias,
        kernel_initializer=_each(layer.kernel_initializer, sizes),
        bias_initializer=layer.bias_initializer,
        kernel_regularizer=layer.kernel_regularizer,
        bias_regularizer=layer.bias_regularizer,
        dtype=layer.dtype_policy,
        name=name,
    )
    projection.build((None, width))
    return projection


def norm(layer, name, width):
    """A built RMS norm over heads of this width."""
    normalization = keras.layers.RMSNormalization(dtype=layer.dtype_policy, name=name)
    normalization.build((None, width))
    return normalization


def split(x, sizes):
    """Parts of the last axis."""
    if len(set(sizes)) == 1:
        return ops.split(x, len(sizes), axis=-1)
    # `ops.split` at indices makes tensors of them, which TorchDynamo cannot trace.
    ends = itertools.accumulate(sizes)
    return [x[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]


def split_heads(x, heads):
    """`(B, T, heads * D)` to `(B, T, heads, D)`."""
    batch, steps, width = ops.shape(x)
    return ops.reshape(x, (batch, steps, heads, width // heads))


def silence(y, padding):
    """Y `(B, T, ...)` with exact zeros where `padding` `(B, T)` is False."""
    return y if padding is None else ops.where(padding[..., None], y, ops.zeros_like(y))


def config(layer):
    """The constructor arguments that self- and cross-attention share."""
    initializer, regularizer = keras.initializers.serialize, keras.regularizers.serialize
    return {
        **{name: getattr(layer, name) for name in ARGUMENTS},
        "kernel_initializer": initializer(layer.kernel_initializer),
        "bias_initializer": initializer(layer.bias_initializer),
        "kernel_regularizer": regularizer(layer.kernel_regularizer),
        "bias_regularizer": regularizer(layer.bias_regularizer),
    }


def _each(initializer, sizes):
    """An initializer of a matrix that initialises its parts as matrices of their own."""

    def initialize(shape, dtype=None):
        parts = [_numbered(initializer, i) for i in range(len(sizes))]
        drawn = [part((shape[0], n), dtype=dtype) for part, n in zip(parts, sizes, strict=True)]
        return ops.concatenate(drawn, axis=-1)

    return initialize


def _numbered(initializer, index):
    """A copy of the initializer that draws other numbers for another index."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    fields = initializer.get_config()
    if isinstance(fields.get("seed"), int):
        fields["seed"] += index
    return type(initializer).from_config(fields)
