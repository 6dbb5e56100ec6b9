"""Arguments that are one number for all sides of a map, or one for each."""

from kattn import arguments


def check_per_side(rank, least, /, **values):
    """Raises ValueError unless each value is an integer >= least, or a tuple of one for each side.

    Args:
        rank: Number of sides.
        least: Smallest number that is allowed.
        **values: The arguments, by name.
    """
    for name, value in values.items():
        numbers = per_side(rank, value)
        fits = all(arguments.is_integer(n) and n >= least for n in numbers)
        if len(numbers) != rank or not fits:
            raise arguments.error(
                f"`{name}` must be an integer >= {least}, or one for each side, {rank} in all",
                **{name: value},
            )


def per_side(rank, value):
    """A value for each side, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank
