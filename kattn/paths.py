"""Paths that tell the layers and weights of a model apart.

Keras begins a path at the model that was built first: two models inside a model may have weights of
equal paths. A path here begins below the outer model, with the names of all that a weight lies in.
"""


def weight_paths(model):
    """Return the path of each variable in a model, a dict by the id of the variable.

    It is Keras's own path, behind the names of the models and layers around it that this leaves
    out. A variable in several places has the path of the first one.

    Args:
        model: A Keras model or layer that has been built.
    """
    found: dict[int, str] = {}
    for layer, names in _nested(model):
        for variable in layer.variables:
            *scopes, name = variable.path.split("/")
            found.setdefault(id(variable), "/".join([*_joined(names, scopes), name]))
    return found


def layer_paths(model):
    """Return the path of each layer in a model by the id of the layer, as `weight_paths` does."""
    found: dict[int, str] = {}
    for layer, names in _nested(model):
        scopes = (layer.path or layer.name).split("/")
        found.setdefault(id(layer), "/".join(_joined(names, scopes)))
    return found


def _nested(layer, names=()):
    """All layers, the innermost first, each with the names of those around it and its own."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield from _nested(inner, (*names, inner.name))
    yield layer, names


def _joined(names, scopes):
    """The scopes, behind those of the names that they leave out."""
    for first in range(len(names)):
        rest = iter(scopes)
        if all(name in rest for name in names[first:]):
            return [*names[:first], *scopes]
    return [*names, *scopes]
