"""Groups of weights: by patterns of their paths, and by their depth in the model."""

import re

import keras

from kattn.arguments import error
from kattn.paths import weight_paths


def check_patterns(argument, patterns):
    """Raise ValueError unless all patterns are regular expressions.

    Args:
        argument: Name of the argument that has the patterns, for the message.
        patterns: An iterable of strings.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as fault:
            raise error(
                f"The patterns of `{argument}` must be regular expressions ({fault})",
                pattern=pattern,
            ) from fault


def check_matches(argument, patterns, model):
    """Raise ValueError if a pattern is found in the path of no trainable weight.

    Args:
        argument: Name of the argument that has the patterns, for the message.
        patterns: An iterable of regular expressions.
        model: A model that has been built.
    """
    every = weight_paths(model)
    paths = [every[id(variable)] for variable in model.trainable_variables]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise error(
                f"Each pattern of `{argument}` must match the path of a trainable weight",
                pattern=pattern,
                paths=paths,
            )


def group_of(path, patterns):
    """Return the index of the first pattern that is found in a path, or None."""
    return next((i for i, pattern in enumerate(patterns) if re.search(pattern, path)), None)


def depths(model):
    """Return how many layers lie between each trainable weight and the output, by its id.

    Layers are those of the model that have trainable weights, in the order in which the model lists
    them; the layers of a model inside the model count one by one. The last layer has depth 0.

    Args:
        model: A model that has been built.
    """
    layers = [layer for layer in _leaves(model) if layer.trainable_variables]
    depth_of: dict[int, int] = {}
    for depth, layer in enumerate(reversed(layers)):
        for variable in layer.trainable_variables:
            depth_of.setdefault(id(variable), depth)
    return depth_of


def _leaves(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer
