"""Steps at which one part of a schedule ends and the next begins."""

import itertools

from kattn.arguments import error, is_integer


def check_boundaries(boundaries):
    """Raise ValueError unless these are a tuple of steps >= 1, each above the one before."""
    are_steps = isinstance(boundaries, tuple) and all(is_integer(x) and x >= 1 for x in boundaries)
    if not are_steps or any(b <= a for a, b in itertools.pairwise(boundaries)):
        raise error(
            "`boundaries` must be integers >= 1, each above the one before", boundaries=boundaries
        )
