"""What a model computes, whichever way its arguments said it."""

import keras

from kattn.layers.transformer.norms import new_norm
from kattn.models import TransformerLM

# What does not change what a layer computes from its weights.
INCIDENTAL = ("name", "dtype", "trainable", "initializer", "regularizer", "constraint")
# Arguments of the models beside those of their blocks.
OF_MODELS = (
    "vocabulary_size",
    "tie_embeddings",
    "num_classes",
    "pooling",
    "use_pooler",
    "num_token_types",
    "use_embedding_norm",
    "image_size",
    "patch_size",
    "channels",
)
OF_BLOCKS = ("num_layers", "num_heads", "width", "placement", "use_bias", "use_qk_norm")
BIASES = ("use_qkv_bias", "use_feed_forward_bias")  # None for `use_bias`


def facts(model):
    """What a model of Transformer blocks computes, as a dict; what it drops does not count.

    Args:
        model: A model of `kattn.models`, which must be built if its `hidden_dim` is None.

    Returns:
        A dict that is equal for models that compute the same from the same weights.
    """
    options = model.options
    windows = options.window if isinstance(options.window, tuple) else (options.window,)
    return {
        **{name: getattr(model, name) for name in OF_MODELS if hasattr(model, name)},
        **{name: getattr(options, name) for name in OF_BLOCKS},
        "num_key_value_heads": options.num_key_value_heads or options.num_heads,
        "key_dim": options.key_dim or options.width // options.num_heads,
        "hidden_dim": hidden_width(model.blocks[0].feed_forward),
        "activation": options.activation,
        **{name: _first(getattr(options, name), options.use_bias) for name in BIASES},
        "qk_norm_epsilon": options.qk_norm_epsilon if options.use_qk_norm else None,
        "window": tuple(windows[i % len(windows)] for i in range(options.num_layers)),
        "norm": _norm(options.norm),
        "position": _position(model.position),
        "decoder_position": _position(getattr(model, "decoder_position", None)),
        "padding_token": _padding_token(model),
    }


def _padding_token(model):
    """None for a language model, as masks alone say to `transformers` what is padding there."""
    return None if isinstance(model, TransformerLM) else getattr(model, "padding_token", None)


def hidden_width(feed_forward):
    """Number of hidden channels of a `FeedForward`, which is built if it was not told."""
    return feed_forward.hidden_dim or feed_forward._output.kernel.shape[0]


def _first(choice, default):
    return default if choice is None else choice


def _norm(norm):
    """The class and the numbers of a norm."""
    layer = new_norm(norm, "norm", None)
    for kind in (keras.layers.LayerNormalization, keras.layers.RMSNormalization):
        if isinstance(layer, kind):
            return {"class": kind.__name__, **_numbers(layer)}
    return {"class": type(layer).__name__, **_numbers(layer)}


def _position(position):
    return {} if position is None else {"class": type(position).__name__, **_numbers(position)}


def _numbers(layer):
    """What a layer's config says of what it computes."""
    config = layer.get_config()
    return {name: value for name, value in config.items() if not name.endswith(INCIDENTAL)}
