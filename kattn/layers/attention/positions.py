"""What an attention layer does with `position=`: which kind it is, and where its steps stand."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.position.head_position import HeadPosition
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.score_bias import ScoreBias
from kattn.ops import masking


def read_position(position, *, scores=True):
    """The argument `position` of a layer: a position layer, its config, or None.

    Args:
        position: What the layer was given.
        scores: Whether the layer has scores that a bias can be added to.

    Returns:
        A `Position` or None.

    Raises:
        ValueError: If it is something else, or a bias where there are no scores.
    """
    if isinstance(position, dict):
        position = keras.saving.deserialize_keras_object(position)
    if position is not None and not isinstance(position, InputPosition | HeadPosition | ScoreBias):
        raise arguments.error(
            "`position` must be a position layer, such as kattn.layers.RotaryEmbedding(), or None; "
            "one of your own derives from InputPosition, HeadPosition or ScoreBias",
            position=position,
        )
    if isinstance(position, ScoreBias) and not scores:
        raise arguments.error(
            "`position` must be one of the inputs, or of queries and keys: linear attention has no "
            "scores that a bias could be added to",
            position=position,
        )
    return position


def attach(position, width, sizes):
    """Makes the weights of a position layer for inputs of `width` channels and these heads."""
    if position is not None:
        position.attach(width=width, num_heads=sizes.heads, key_dim=sizes.key_dim)
        position.built = True  # also without weights: Keras traces an unbuilt model at each batch


def embed(position, x, positions):
    """The inputs `(B, T, C)`, with their positions added if they are added to inputs."""
    return position.embed(x, positions) if isinstance(position, InputPosition) else x


def rotate(position, x, positions):
    """Queries or keys `(B, T, N, D)`, turned by their positions if these turn heads."""
    return position.rotate(x, positions) if isinstance(position, HeadPosition) else x


def score_bias(position, query, grid=None):
    """What is added to the scores of queries `(B, T, N, D)`: a `kattn.biases.Bias` or None.

    Args:
        position: Position layer or None.
        query: Queries, float, shape `(B, T, N, D)`.
        grid: `Grid` whose cells are the queries, or None for a sequence.
    """
    return position.bias(query, grid) if isinstance(position, ScoreBias) else None


def step_positions(position, explicit, padding, mask=None, *, shifts_matter=False):
    """The positions that `embed` and `rotate` get, or None for 0 to T - 1.

    Args:
        position: Position layer or None.
        explicit: Positions that the caller gave, or None.
        padding: `(B, T)` bool, True = real step, or None. Absolute positions count from the first
            real step, so that padding at the left changes nothing.
        mask: Mask object or None. Positions begin again with each of its segments.
        shifts_matter: Whether a shift of all positions changes what the layer computes even if
            the positions are not absolute.

    Returns:
        `(T,)` or `(B, T)` integers, or None.

    Raises:
        ValueError: If positions are given where `position` does not use any.
    """
    if explicit is not None:
        if not isinstance(position, InputPosition | HeadPosition):
            raise arguments.error(
                "`positions` can only be given if `position` is added to the inputs or turns "
                "queries and keys; a bias goes by the order of the keys",
                position=position,
            )
        return explicit
    if position is None or not (_is_absolute(position) or shifts_matter):
        return None
    restarts = masking.restarts(mask)
    if restarts is not None or padding is None:
        return restarts
    return _from_the_first(ops.shape(padding)[1], padding)[0]


def aligned_positions(queries, keys, query_padding, key_padding):
    """Positions of queries and keys whose last real steps are aligned, as causal masks are.

    Args:
        queries: Number of query steps, T.
        keys: Number of key steps, S.
        query_padding: `(B, T)` bool, True = real step, or None.
        key_padding: `(B, S)` bool, True = real step, or None.

    Returns:
        Two arrays of integers, `(T,)` or `(B, T)` and `(S,)` or `(B, S)`. The first real key is at
        0, so that padding at the left changes nothing.
    """
    at_query, last_query = _from_the_first(queries, query_padding)
    at_key, last_key = _from_the_first(keys, key_padding)
    return at_query + (last_key - last_query), at_key


def _from_the_first(steps, padding):
    """Positions that count from the first real step, and that of the last real step."""
    index = ops.arange(steps, dtype="int32")
    if padding is None:
        return index, steps - 1
    real = ops.cast(padding, "int32")
    # Counted, as there may be no steps, of which there is no largest.
    is_before = ops.cumsum(real, axis=1) == 0
    is_behind = ops.cumsum(ops.flip(real, axis=1), axis=1) == 0
    first, behind = (
        ops.sum(ops.cast(x, "int32"), axis=1, keepdims=True) for x in (is_before, is_behind)
    )
    behind_first = index - first
    behind_first = ops.maximum(behind_first, ops.zeros_like(behind_first))
    return behind_first, steps - 1 - behind - first


def new_positions(position, positions, mask):
    """The positions that `embed` and `rotate` get for new steps, at `(B, t)` of a cache."""
    if position is None:
        return None
    return masking.positions_in_segments(mask if _is_absolute(position) else None, positions)


def _is_absolute(position):
    """Whether a shift of all positions changes what the position layer does."""
    return isinstance(position, InputPosition) and position.is_absolute
