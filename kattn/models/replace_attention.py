"""Keras's attention layers in a model, exchanged for kattn's."""

import inspect
from collections.abc import Callable

import keras
from keras import layers

from kattn import arguments
from kattn.layers.attention.multi_head_attention import MultiHeadAttention

STOCK = (layers.MultiHeadAttention, layers.GroupQueryAttention)
# Arguments of `GroupQueryAttention`, and what they are called in `MultiHeadAttention`.
RENAMED = {"head_dim": "key_dim", "num_query_heads": "num_heads"}


def replace_attention(
    model: keras.Model, *, print_fn: Callable[[str], object] | None = print
) -> keras.Model:
    """A copy of a model with kattn's attention layers in the place of Keras's.

    Each `keras.layers.MultiHeadAttention` and `keras.layers.GroupQueryAttention` of the model, and
    of functional and sequential models in it, becomes a `kattn.layers.MultiHeadAttention` of the
    same name and weights. The outputs are the same within 1e-5 wherever a query sees a key. What
    differs is padding: a Keras mask stays with the inputs of the layer, so that the layers behind
    it leave padding out, too, and a query that sees no key mixes nothing.

    A layer stays as it is, with a line that says why, if it is of a subclass, is part of a layer of
    another kind, or has a causal mask or a window over a query and a value that may differ in
    length, which Keras aligns at their first steps.

    Args:
        model: A functional or sequential model that is built. It is not changed.
        print_fn: Function that is called with a line of text for each attention layer, which says
            what became of it. None to say nothing.

    Returns:
        The new model, with copies of all weights. As from `keras.models.clone_model`, it is
        compiled if `model` is, with a new optimizer.

    Raises:
        ValueError: If the model is a subclassed one or is not built, or if a layer has weights that
            its config does not make, as by LoRA or quantisation.

    Example:
        >>> x = keras.Input((64, 32))
        >>> y = keras.layers.MultiHeadAttention(4, 8, name="attention")(x, x)
        >>> model = kattn.models.replace_attention(keras.Model(x, y))
        attention: is a kattn.layers.MultiHeadAttention now
        >>> type(model.get_layer("attention")).__module__.split(".")[0]
        'kattn'
    """
    if not (isinstance(model, keras.Sequential) or hasattr(model, "inputs")) or not model.built:
        raise arguments.error(
            "`model` must be a functional or sequential model that is built; in a subclassed "
            "model write kattn.layers.MultiHeadAttention for keras.layers.MultiHeadAttention",
            model=model,
        )
    say = print_fn or (lambda line: None)
    pairs = []

    def clone(layer):
        pairs.append((layer, _replaced(layer, say)))
        return pairs[-1][1]

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for old, new in pairs:
        if [w.shape for w in old.weights] != [w.shape for w in new.weights]:
            raise arguments.error(
                "`model` must consist of layers whose config makes their weights; those of LoRA "
                "and of quantisation cannot be copied",
                layer=old.name,
            )
        new.set_weights(old.get_weights())
        if hasattr(new, "finalize_state"):  # what `Normalization` computes of its weights
            new.finalize_state()
    return copy


def _replaced(layer, say):
    """A new layer for a layer of the model, and a line for each attention layer in it."""
    if not isinstance(layer, STOCK):
        for part in layer._flatten_layers(include_self=False):
            if isinstance(part, STOCK):
                say(f"{layer.name}/{part.name}: stays, as it is part of a {type(layer).__name__}")
        return type(layer).from_config(layer.get_config())
    obstacle = _obstacle(layer)
    if obstacle:
        say(f"{layer.name}: stays, as {obstacle}")
        return type(layer).from_config(layer.get_config())
    say(f"{layer.name}: is a kattn.layers.MultiHeadAttention now")
    return _ours(layer)


def _ours(layer):
    config = {RENAMED.get(name, name): value for name, value in layer.get_config().items()}
    ours = MultiHeadAttention.from_config(config)
    ours.build_from_config(layer.get_build_config())
    return ours


def _obstacle(layer):
    """Why a layer cannot be replaced, or None."""
    if type(layer) not in STOCK:
        return f"{type(layer).__name__} is a subclass with code of its own"
    has_window = layer.get_config()["sliding_window"] is not None
    # How a layer of a functional model is called stands in its nodes only.
    for node in layer._inbound_nodes:
        given = inspect.signature(layer.call).bind(*node.arguments.args, **node.arguments.kwargs)
        query, value = given.arguments["query"], given.arguments["value"]
        lengths = query.shape[1:-1], value.shape[1:-1]
        may_differ = query is not value and (None in lengths[0] or lengths[0] != lengths[1])
        if may_differ and (has_window or given.arguments.get("use_causal_mask")):
            return "Keras aligns its causal mask or window at the first steps of query and value"
    return None
