"""What layers of linear attention have in common around the core: checks, padding and config."""

import keras
from keras import ops

from kattn.layers.attention import schemes
from kattn.layers.position.position import Position
from kattn.layers.position.score_bias import ScoreBias
from kattn.ops import chunks

INITIALIZERS = ("kernel_initializer", "bias_initializer")
REGULARIZERS = ("kernel_regularizer", "bias_regularizer")


def check_integers(layer, *names):
    """Raises ValueError unless these arguments, `num_heads` excepted, are None or integers >= 1."""
    for name in names:
        value = getattr(layer, name)
        if value is None and name != "num_heads":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1; received: {name}={value!r}")


def check_choice(layer, name, choices):
    """Raises ValueError unless the argument is one of these strings."""
    value = getattr(layer, name)
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}; received: {name}={value!r}"
        )


def read_padding(layer, x, mask, *, called):
    """`(B, T)` bool or None: the mask that was given and that which Keras keeps for `x`.

    `called`: whether this is the layer's call, to which Keras gives the mask it keeps as `mask`
    unless the caller gave one.
    """
    if mask is None:
        return None if called else layer._mask_reader.read(x)
    mask = chunks.check_mask(mask, x.shape[:2])
    implicit = layer._mask_reader.read(x)
    return mask if implicit is None else ops.logical_and(mask, implicit)


def read_position(position):
    """The argument `position`; raises ValueError for a bias, since there are no scores."""
    position = schemes.read(position, "position", Position)
    if isinstance(position, ScoreBias):
        raise ValueError(
            "`position` must be of the inputs, or of queries and keys: linear attention has no "
            f"scores that a bias could be added to. Received: position={position!r}"
        )
    return position


def attach(layer, width, key_dim):
    """Makes the weights of the layer's `position`."""
    if layer.position is not None:
        layer.position.attach(width=width, num_heads=layer.num_heads, key_dim=key_dim)


def embed(layer, x, positions):
    """`x` with its positions, if they are of that kind."""
    return schemes.embed(layer.position, x, positions)


def set_initializers(layer, **given):
    """Sets the initializers and regularizers of the projections from their arguments."""
    for names, get in (
        (INITIALIZERS, keras.initializers.get),
        (REGULARIZERS, keras.regularizers.get),
    ):
        for name in names:
            setattr(layer, name, get(given[name]))


def config(layer, *names):
    """These constructor arguments, and the initializers and regularizers."""
    found = {name: getattr(layer, name) for name in names}
    for name in INITIALIZERS:
        found[name] = keras.initializers.serialize(getattr(layer, name))
    for name in REGULARIZERS:
        found[name] = keras.regularizers.serialize(getattr(layer, name))
    return found


def key_dim_of(layer):
    """D; raises ValueError where only the input's width would tell and is not known yet."""
    if layer.key_dim is None and not layer.built:
        raise ValueError(
            "A cache needs `key_dim`, which is None, or a layer that is built; received: "
            f"key_dim=None, built={layer.built}"
        )
    return layer.key_dim or layer._key_dim
