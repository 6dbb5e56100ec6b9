"""Self-attention for Keras 3: layers and models, the attention core beneath them, callbacks.

The same on TensorFlow, JAX and PyTorch; Keras's own setting (`KERAS_BACKEND`) chooses.
"""

from kattn import biases as biases
from kattn import callbacks as callbacks
from kattn import data as data
from kattn import layers as layers
from kattn import masks as masks
from kattn import models as models
from kattn import ops as ops
from kattn import schedules as schedules

__version__ = "0.1.0"
