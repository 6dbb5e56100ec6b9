"""What the attention layers are made of can be quantised, and says so in their config."""

import keras
from keras.dtype_policies import DTypePolicyMap

from kattn.layers.rematerialized_layer import RematerializedLayer


class QuantizableLayer(RematerializedLayer):
    """Base of the layers that are made of projections, which `quantize` of a model changes.

    A quantised sub-layer has a dtype policy of its own. The config says so as Keras says it of any
    layer whose parts have policies of their own: the layer's `dtype` is a map from the paths of
    these parts to their policies. So a quantised model can be saved and loaded.
    """

    def get_config(self):
        config = super().get_config()
        if isinstance(self.dtype_policy, DTypePolicyMap):
            return config  # in which Keras notes by itself what is quantised
        policies = {
            f".*/{part.name}": part.dtype_policy  # wherever in a model the layer stands
            for part in self._flatten_layers(include_self=False)
            if part.quantization_mode is not None
        }
        if policies:
            policies = DTypePolicyMap(self.dtype_policy.name, policies)
            config["dtype"] = keras.dtype_policies.serialize(policies)
        return config
