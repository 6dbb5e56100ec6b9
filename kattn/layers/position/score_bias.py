"""Position layers that change the scores."""

from kattn.layers.position.position import Position
from kattn.layers.position.query_products import check_query
from kattn.ops.scores import add_bias, check_scores


class ScoreBias(Position):
    """Base class of positions that are added to the scores. Override `bias`.

    An attention layer with `position=` of this kind adds `bias(query)` to its scores before the
    softmax; on a feature map it adds `bias(query, grid)`. Called alone, the layer adds its bias
    to an array of scores.

    Shapes: B batch, N heads, T query steps, S key steps, D head width.

    Args:
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        scores: Scores q . k / sqrt(D), float, shape `(B, N, T, S)`. Query i stands at the
            position of key i + (S - T).
        query: Queries that the scores were made from, float, shape `(B, T, N, D)`. It may be
            None if `bias` does not need it.

    Returns:
        `(B, N, T, S)`, the scores with their bias, of the dtype of `scores`. The sum is computed
        in float32.

    Raises:
        ValueError: When called, if `scores` is not of rank 4, its number of heads is unknown, or
            `query` does not fit it; when attached to attention layers whose sizes cannot share
            its weights.

    Example:
        >>> class LearnedSlopes(kattn.layers.ScoreBias):
        ...     '''Subtracts the distance times a learned number, one for each head.'''
        ...     def attach(self, *, width, num_heads, key_dim):
        ...         if self.remember_sizes(num_heads=num_heads):
        ...             self.slopes = self.add_weight(shape=(num_heads,), initializer="ones")
        ...     def bias(self, query, grid=None):
        ...         self.check_sequence(grid)
        ...         return kattn.biases.ALiBi(keras.ops.convert_to_tensor(self.slopes))
        >>> layer = kattn.layers.SelfAttention(4, position=LearnedSlopes())
        >>> tuple(layer(keras.random.normal((2, 10, 16))).shape)
        (2, 10, 16)

    Reference:
        Shaw et al. 2018, sec. 3, https://arxiv.org/abs/1803.02155
    """

    def build(self, scores_shape, query_shape=None):
        num_heads = check_scores(scores_shape)
        key_dim = None if query_shape is None else query_shape[-1]
        self.attach(width=None, num_heads=num_heads, key_dim=key_dim)

    def call(self, scores, query=None):
        if query is not None:
            check_query(query, scores)
        return add_bias(scores, self.bias(query))

    def bias(self, query, grid=None):
        """What is added to the scores.

        Args:
            query: Queries, float, shape `(B, T, N, D)`.
            grid: `kattn.grid.Grid` whose cells, in row-major order, are the steps. None stands
                for a sequence. A bias of sequences only begins with `self.check_sequence(grid)`.

        Returns:
            A `kattn.biases.Bias`.
        """
        raise NotImplementedError("A ScoreBias must override `bias`")

    def check_sequence(self, grid):
        """Raises ValueError if there is a grid, for a bias that can serve sequences only.

        Args:
            grid: The argument of `bias`: a `kattn.grid.Grid`, or None for a sequence.

        Raises:
            ValueError: If `grid` is not None.
        """
        if grid is not None:
            raise ValueError(
                f"{type(self).__name__} has a bias for sequences only; use RelativeTable for the "
                f"cells of a grid; received: grid={grid!r}"
            )

    def compute_output_shape(self, scores_shape, query_shape=None):
        return scores_shape
