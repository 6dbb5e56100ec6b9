"""Self-attention for Keras 3: layers and models, the attention core beneath them, callbacks.

The same on TensorFlow, JAX and PyTorch; Keras's own setting (`KERAS_BACKEND`) chooses.
"""

import importlib
from typing import TYPE_CHECKING

from kattn import biases as biases
from kattn import layers as layers
from kattn import masks as masks
from kattn import models as models
from kattn import ops as ops

if TYPE_CHECKING:
    from kattn import callbacks as callbacks
    from kattn import data as data
    from kattn import generation as generation
    from kattn import presets as presets
    from kattn import profile as profile
    from kattn import schedules as schedules
    from kattn import text as text
    from kattn import visualize as visualize
    from kattn.generation import generate as generate

__version__ = "0.2.0"

# Imported when first asked for, as a model in use needs none of them.
ON_DEMAND = (
    *("callbacks", "data", "generation", "presets", "profile", "schedules", "text"),
    "visualize",
)


def __getattr__(name):
    if name in ON_DEMAND:
        return importlib.import_module(f"kattn.{name}")
    if name == "generate":
        return importlib.import_module("kattn.generation").generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *ON_DEMAND, "generate"})
