"""What the three kinds of position layers share."""

import keras


class Position(keras.layers.Layer):
    """Base class of the three kinds of position layers.

    A position layer is a subclass of one of the kinds, and overrides one method of it:

    - `InputPosition`: `embed` (added to the inputs),
    - `HeadPosition`: `rotate` (applied to queries and keys),
    - `ScoreBias`: `bias` (added to the scores).

    A layer with weights makes them in `attach`, which every kind has.

    Args:
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        *args: Tensors that the position layer changes. Each kind says which.

    Returns:
        The first of the tensors, changed; its shape stays the same.

    Raises:
        ValueError: When attached to attention layers whose sizes cannot share its weights.

    Example:
        >>> position = kattn.layers.T5RelativeBias()  # one table for two attention layers
        >>> first = kattn.layers.SelfAttention(4, position=position)
        >>> second = kattn.layers.SelfAttention(4, position=position)
        >>> y = second(first(keras.random.normal((2, 10, 16))))
        >>> tuple(y.shape), tuple(position.table.shape)
        ((2, 10, 16), (4, 32))

    Reference:
        Dufter et al. 2021 (a survey), https://arxiv.org/abs/2102.11090
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self._sizes = None

    def attach(self, *, width, num_heads, key_dim):
        """Makes the weights for an attention layer of these sizes.

        An attention layer calls this when it is built, once for each layer that shares the
        position layer. A position layer that is called alone calls it itself, with None for the
        sizes that it cannot know. A position layer without weights need not override `attach`.

        Args:
            width: Number of channels C of the input of the attention layer, or None.
            num_heads: Number of query heads N, or None.
            key_dim: Width D of the queries and keys of one head, or None.

        Raises:
            ValueError: If the weights were made for other sizes.
        """

    def remember_sizes(self, **sizes):
        """Whether these sizes are the first ones, so that `attach` must make the weights now.

        Args:
            **sizes: Sizes that the weights depend on, among `width`, `num_heads` and `key_dim`.

        Returns:
            True the first time, False each time that the sizes are the same again.

        Raises:
            ValueError: If a size differs from that of the first time.

        Example:
            >>> position = kattn.layers.Position()
            >>> position.remember_sizes(num_heads=4), position.remember_sizes(num_heads=4)
            (True, False)
        """
        if self._sizes is None:
            self._sizes = sizes
            self.built = True
            return True
        for name, size in sizes.items():
            if size != self._sizes[name]:
                raise ValueError(
                    f"This position layer was built for {name}={self._sizes[name]}; "
                    f"it cannot be shared with {name}={size}."
                )
        return False
