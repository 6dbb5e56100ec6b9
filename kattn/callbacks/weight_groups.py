"""Which weights belong together: by patterns of their paths, and by their depth."""

import re

import keras


def check_patterns(argument, patterns):
    """Raises ValueError unless all are regular expressions."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{argument} must have regular expressions as keys: "
                f"pattern={pattern!r}, error={error}"
            ) from error


def check_matches(argument, patterns, model):
    """Raises ValueError if a pattern is found in the path of no trainable weight."""
    paths = [variable.path for variable in model.trainable_variables]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"{argument} must have patterns that match a weight's path: "
                f"pattern={pattern!r}, paths={paths}"
            )


def group_of(path, patterns):
    """The index of the first pattern that is found in a path, or None."""
    return next((i for i, pattern in enumerate(patterns) if re.search(pattern, path)), None)


def depths(model):
    """Blocks from the output, by the path of each trainable weight: 0 for the last.

    Blocks are the layers of the model that have trainable weights, in the order in which the model
    lists them; those of a model in it count one by one.
    """
    blocks = [layer for layer in _leaves(model) if layer.trainable_variables]
    found: dict[str, int] = {}
    for depth, layer in enumerate(reversed(blocks)):
        for variable in layer.trainable_variables:
            found.setdefault(variable.path, depth)
    return found


def _leaves(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer
