"""Callbacks for training: schedules, clipping, watching, fine-tuning and resuming.

They act on TensorFlow, JAX and PyTorch alike, and inside of the compiled step where they act on
updates. A model trained with them saves and loads as Keras's own.
"""

from kattn.callbacks.dropout_schedule import DropoutSchedule as DropoutSchedule
from kattn.callbacks.gradient_clipping import GradientClipping as GradientClipping
from kattn.callbacks.gradient_monitor import GradientMonitor as GradientMonitor
from kattn.callbacks.gradual_unfreezing import GradualUnfreezing as GradualUnfreezing
from kattn.callbacks.hyperparameter_schedule import HyperparameterSchedule as HyperparameterSchedule
from kattn.callbacks.layerwise_learning_rates import (
    LayerwiseLearningRates as LayerwiseLearningRates,
)
from kattn.callbacks.learning_rate import LearningRate as LearningRate
from kattn.callbacks.spike_guard import SpikeGuard as SpikeGuard
from kattn.callbacks.warmup_then_plateau import WarmupThenPlateau as WarmupThenPlateau
