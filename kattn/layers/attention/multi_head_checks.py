"""What `MultiHeadAttention` refuses, in the words by which code for Keras's layer knows it."""

from kattn import arguments
from kattn.layers.attention.flattened_axes import check_axes
from kattn.layers.attention.head_sizes import check_heads
from kattn.layers.position.input_position import InputPosition


def read_integers(subject, /, **value):
    """None, or a tuple of integers from one or several.

    Args:
        subject: Beginning of the message that says what must be so.
        **value: Name and value of one argument.

    Raises:
        ValueError: If it is something else.
    """
    (given,) = value.values()
    if given is None:
        return None
    values = given if isinstance(given, list | tuple) else (given,)
    if not all(isinstance(part, int) for part in values):
        raise arguments.error(f"{subject} must be an integer or several", **value)
    return tuple(values)


def check_arguments(layer):
    """Raises ValueError unless the arguments that a layer holds are in range."""
    sizes = {name: getattr(layer, name) for name in ("num_heads", "key_dim", "value_dim")}
    for name, size in sizes.items():
        if not arguments.is_integer(size) or size < 1:
            # "argument `num_heads`" is what Keras says.
            raise arguments.error(f"The argument `{name}` must be an integer >= 1", **{name: size})
    check_heads(**sizes, num_key_value_heads=layer.num_key_value_heads)
    arguments.check_optional_integers(1, sliding_window=layer.sliding_window)
    arguments.check_fractions(dropout=layer.dropout)
    arguments.check_choice((None, True, False), flash_attention=layer.flash_attention)
    if isinstance(layer.position, InputPosition):
        raise arguments.error(
            "`position` must turn queries and keys or be a bias; add positions of the inputs "
            "before the layer",
            position=layer.position,
        )


def check_shapes(layer, *shapes):
    """Raises ValueError unless a layer takes inputs of these shapes.

    Args:
        layer: The layer.
        *shapes: Shapes of query, value and key.
    """
    check_axes(layer.attention_axes, *shapes)
    if layer.built and layer._input_sizes != (len(shapes[0]), *(shape[-1] for shape in shapes)):
        rank, *widths = layer._input_sizes
        raise arguments.error(
            f"The layer was built for inputs of rank {rank}, and for widths {tuple(widths)} of "
            "`query`, `value` and `key`",
            shapes=tuple(map(tuple, shapes)),
        )
