"""The private names by which code that is written for Keras's layer reaches into ours."""

# Methods of Keras's layer that a subclass could override there, and that have no place here.
NOT_CALLED = (
    "_build_attention",
    "_compute_attention_mask",
    "_compute_causal_mask",
    "_compute_sliding_window_mask",
    "_get_common_kwargs_for_sublayer",
    "_make_output_dense",
    "_masked_softmax",
)


def _also(name):
    """A property that reads and sets the attribute `name`."""
    return property(lambda self: getattr(self, name), lambda self, x: setattr(self, name, x))


class KerasNames:
    """Gives a layer the attributes that `keras.layers.MultiHeadAttention` has, public and private.

    A subclass may not override a private method of Keras's layer that this layer does not call,
    as that would have no effect.
    """

    query_dense = _also("_query_dense")
    key_dense = _also("_key_dense")
    value_dense = _also("_value_dense")
    output_dense = _also("_output_dense")
    _num_heads = _also("num_heads")
    _key_dim = _also("key_dim")
    _value_dim = _also("value_dim")
    _dropout = _also("dropout")
    _use_bias = _also("use_bias")
    _use_gate = _also("use_gate")
    _attention_axes = _also("attention_axes")
    _sliding_window = _also("sliding_window")
    _flash_attention = _also("flash_attention")

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        ignored = [name for name in NOT_CALLED if hasattr(cls, name)]
        if ignored:
            raise TypeError(
                f"{cls.__name__} overrides {', '.join(ignored)}, which this layer does not call; "
                "override `_compute_attention` or `call`, or derive from "
                "keras.layers.MultiHeadAttention"
            )
