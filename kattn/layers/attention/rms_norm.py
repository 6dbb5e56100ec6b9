"""Keras's RMS normalisation, in a form that every exporter knows."""

import keras

from kattn.ops.normalization import rms_normalization


class RMSNorm(keras.layers.RMSNormalization):
    """A `keras.layers.RMSNormalization` that can be exported to ONNX on PyTorch, too."""

    def call(self, x):
        return rms_normalization(x, self.scale, self.epsilon)
