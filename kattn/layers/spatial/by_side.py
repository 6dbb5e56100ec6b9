"""Arguments that are one value for all sides of a map, or one for each."""

from kattn import arguments


def by_side(rank, value):
    """A value for each side of a map, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank


def integers_by_side(rank, least, /, **values):
    """The integers of one argument for each side of a map, as a tuple.

    Args:
        rank: Number of sides.
        least: Smallest integer that is allowed.
        **values: The argument, by its name.

    Raises:
        ValueError: If it is neither an integer >= `least` nor a tuple of one for each side.
    """
    ((name, value),) = values.items()
    sides = by_side(rank, value)
    fits = len(sides) == rank
    if not fits or not all(arguments.is_integer(n) and n >= least for n in sides):
        raise arguments.error(
            f"`{name}` must be an integer >= {least}, or a tuple of {rank}, one for each side",
            **values,
        )
    return sides
