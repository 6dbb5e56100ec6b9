"""The configs of layers that are arguments of other layers."""

import threading

import keras


def layer_config(layer):
    """The config of an argument that is a layer.

    One layer may be an argument of several others, and is so again in a model that is loaded:
    Keras reads an object with a `shared_object_id` once. Its own numbers are addresses in memory,
    and do not reach all that stands in a layer's config.

    Args:
        layer: Layer, tuple of layers, or None.

    Returns:
        The config; a list of configs for a tuple; None for None. While a model is being saved, it
        has a `shared_object_id`. That counts such layers of the model, so that the model is saved
        alike in any process.

    Example:
        >>> layer_config(keras.layers.ReLU())["class_name"]
        'ReLU'
    """
    if layer is None:
        return None
    if isinstance(layer, tuple):
        return [layer_config(each) for each in layer]
    config = _SAVING.without_others(keras.saving.serialize_keras_object(layer))
    number = _SAVING.number(layer)
    return config if number is None else {**config, "shared_object_id": number}


class _Saving(threading.local):
    """Counts the layers of the model that is being saved that are arguments of others."""

    def __init__(self):
        self.numbers = {}

    def number(self, layer):
        """What a layer is told by in the file; None while no model is being saved."""
        # There is no public function that says whether a model is being saved. But Keras marks
        # whatever it meets a second time while it saves one model, and only then.
        known, saving = (
            "shared_object_id" in keras.saving.serialize_keras_object(_MARKED) for _ in range(2)
        )
        if not known:
            self.numbers.clear()  # another model
        if not saving:
            return None
        if layer._inbound_nodes:
            # It is a layer of a functional model, too, which Keras marks by its address.
            return self.numbers.setdefault(id(layer), id(layer))
        return self.numbers.setdefault(id(layer), len(self.numbers))

    def without_others(self, config):
        """A config without the numbers that are Keras's, not those of layers in the layer."""
        if isinstance(config, list):
            return [self.without_others(x) for x in config]
        if not isinstance(config, dict):
            return config
        kept = self.numbers.values()
        return {
            name: self.without_others(x)
            for name, x in config.items()
            if name != "shared_object_id" or x in kept
        }


_MARKED = keras.initializers.Zeros()
_SAVING = _Saving()
