"""Self-attention for Keras 3: layers, models and the attention core beneath them.

The same on TensorFlow, JAX and PyTorch; Keras's own setting (`KERAS_BACKEND`) chooses.
"""

from kattn import biases as biases
from kattn import layers as layers
from kattn import masks as masks
from kattn import models as models
from kattn import ops as ops

__version__ = "0.1.0"
