"""Callbacks for training: schedules, clipping, watching, fine-tuning and resuming.

They act on TensorFlow, JAX and PyTorch alike, and inside of the compiled step where they act on
updates. A model trained with them saves and loads as Keras's own.
"""

from kattn.callbacks.dropout_schedule import DropoutSchedule as DropoutSchedule
from kattn.callbacks.exact_resume import ExactResume as ExactResume
from kattn.callbacks.exponential_moving_average import (
    ExponentialMovingAverage as ExponentialMovingAverage,
)
from kattn.callbacks.gradient_clipping import GradientClipping as GradientClipping
from kattn.callbacks.gradient_monitor import GradientMonitor as GradientMonitor
from kattn.callbacks.gradual_unfreezing import GradualUnfreezing as GradualUnfreezing
from kattn.callbacks.hyperparameter_schedule import HyperparameterSchedule as HyperparameterSchedule
from kattn.callbacks.layerwise_learning_rates import (
    LayerwiseLearningRates as LayerwiseLearningRates,
)
from kattn.callbacks.learning_rate import LearningRate as LearningRate
from kattn.callbacks.learning_rate_finder import LearningRateCurve as LearningRateCurve
from kattn.callbacks.learning_rate_finder import LearningRateFinder as LearningRateFinder
from kattn.callbacks.spike_guard import SpikeGuard as SpikeGuard
from kattn.callbacks.stochastic_weight_average import (
    StochasticWeightAverage as StochasticWeightAverage,
)
from kattn.callbacks.warmup_then_plateau import WarmupThenPlateau as WarmupThenPlateau
