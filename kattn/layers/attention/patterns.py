"""Which keys a self-attention layer lets each step see: `causal`, `window` and `pattern` as one."""

import keras

from kattn import arguments, masks
from kattn.ops import masking


def read_pattern(pattern):
    """The argument `pattern` of a layer: a mask object without arrays, its config, or None.

    Args:
        pattern: What the layer was given.

    Returns:
        A `kattn.masks.Mask` or None.

    Raises:
        ValueError: If it is something else, or holds arrays, which a config cannot.
    """
    if isinstance(pattern, dict):
        pattern = keras.saving.deserialize_keras_object(pattern)
    if pattern is not None and not isinstance(pattern, masks.Mask):
        raise arguments.error(
            "`pattern` must be a kattn.masks.Mask, such as kattn.masks.Window(256), or None",
            pattern=pattern,
        )
    if masking.arrays_of(pattern):
        raise arguments.error(
            "`pattern` must be a mask without arrays; give a mask with arrays as `mask` of the "
            "call",
            pattern=pattern,
        )
    return pattern


def pattern_config(pattern):
    """The config of the argument `pattern`."""
    return None if pattern is None else keras.saving.serialize_keras_object(pattern)


def join_patterns(causal, window, pattern):
    """The mask object, or None, of what all three arguments allow."""
    arguments.check_optional_integers(1, window=window)
    joined = masks.intersect(
        masks.Causal() if causal else None, None if window is None else masks.Window(window)
    )
    return masks.intersect(joined, pattern)


def is_causal(pattern):
    """Whether a step-by-step decoder can follow the pattern.

    A pattern that lets steps see later ones without a limit may do so for a prefix only, as
    `Causal() | Prefix(n)` does; one with a limit shows each step the steps right after it.
    """
    if pattern is None:
        return False
    after = pattern.reach[1]
    return after <= 0 or after == masks.UNBOUNDED
