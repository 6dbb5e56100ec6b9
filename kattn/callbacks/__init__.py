"""Callbacks for training: schedules, clipping, monitoring, fine-tuning and resuming.

They do the same on TensorFlow, JAX and PyTorch. A model that was trained with them is saved and
loaded as any other Keras model.

What a callback may touch:

- The model, through `self.model` only, and between two steps. A callback never keeps a reference to
  a variable: while `fit` runs on JAX, variables are empty until `self.model` brings them up to
  date.
- An update of the weights, by a `Rule` that runs inside the compiled step. `kattn.callbacks.update`
  says what a rule may change, and how.
- `logs` at the end of an epoch, to which it may add numbers.
- Its own state. `get_state` and `set_state` hand it to `ExactResume`, for which
  `kattn.callbacks.backup` writes and reads files.

No callback changes attributes of the optimizer or `layer.trainable` while `fit` runs: on some
backends that has no effect, on others it breaks the training. A callback that must change a layer
(`DropoutSchedule`, `GradualUnfreezing`) has the step traced again.
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
from kattn.callbacks.learning_rate_curve import LearningRateCurve as LearningRateCurve
from kattn.callbacks.learning_rate_finder import LearningRateFinder as LearningRateFinder
from kattn.callbacks.reset_memory import ResetMemory as ResetMemory
from kattn.callbacks.spike_guard import SpikeGuard as SpikeGuard
from kattn.callbacks.stochastic_weight_average import (
    StochasticWeightAverage as StochasticWeightAverage,
)
from kattn.callbacks.warmup_then_plateau import WarmupThenPlateau as WarmupThenPlateau
