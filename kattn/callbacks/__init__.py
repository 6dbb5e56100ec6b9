"""Callbacks for training: schedules, clipping, watching, fine-tuning and resuming."""

from kattn.callbacks.gradient_clipping import GradientClipping as GradientClipping
from kattn.callbacks.learning_rate import LearningRate as LearningRate
