"""The normalisation layers of a block, each made from one argument."""

import inspect

import keras

from kattn import arguments
from kattn.layers.attention.rms_norm import RMSNorm


def read_norm(norm):
    """The argument `norm` of a block.

    Args:
        norm: "layer" or "rms", a layer, a function that makes one, or the config of either.

    Returns:
        The name or the function; the config in place of a layer, which is itself not a part of the
        block.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(norm, dict):
        norm = keras.saving.deserialize_keras_object(norm)
    if isinstance(norm, keras.layers.Layer):
        config = keras.saving.serialize_keras_object(norm)
        for field in ("build_config", "shared_object_id"):
            config.pop(field, None)
        # Keras's own name counts the layers of the process; each copy gets a name of its place.
        config["config"].pop("name")
        return config
    if norm not in ("layer", "rms") and not callable(norm):
        raise arguments.error(
            "`norm` must be 'layer', 'rms', a normalisation layer or a function that makes one",
            norm=norm,
        )
    return norm


def norm_config(norm):
    """The config of what `read_norm` returned."""
    return norm if isinstance(norm, str | dict) else keras.saving.serialize_keras_object(norm)


def new_norm(norm, name, policy):
    """A new normalisation layer.

    Args:
        norm: What `read_norm` returned.
        name: Name of the new layer.
        policy: Dtype policy of a layer that is asked for by "layer" or "rms".

    Returns:
        A Keras layer that is not built.
    """
    if norm == "layer":
        made = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy)
    elif norm == "rms":
        made = RMSNorm(epsilon=1e-6, dtype=policy)
    elif isinstance(norm, dict):
        made = keras.saving.deserialize_keras_object(norm)
    else:
        made = norm()
    made.name = name
    made.supports_masking = True  # which Keras's RMSNormalization does not say
    made.asks_for_training = "training" in inspect.signature(made.call).parameters
    return made


def normalize(norm, x, training=None):
    """What a normalisation layer makes of x.

    A layer that asks for `training`, as `BatchNormalization` does, is told it: Keras does not know
    it any more when `remat` runs a block again.

    Args:
        norm: Layer that `new_norm` has made.
        x: Its input.
        training: Whether the block trains, or None if Keras knows.

    Returns:
        A tensor of the shape of x.
    """
    return norm(x, training=training) if norm.asks_for_training else norm(x)
