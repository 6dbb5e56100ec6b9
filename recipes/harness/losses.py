"""Losses of tokens. They need Keras, so import this only once the backend is chosen."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("recipes")
class TokenCrossentropy(keras.losses.Loss):
    """Mean cross-entropy of the tokens that count, with labels that are smoothed.

    A label is the token with probability 1 - s + s / V, and each other token with s / V. The loss
    is divided by the sum of the weights, so that padding of weight 0 does not change it.

    Args:
        label_smoothing: The part s of a label that all V tokens share, in [0, 1).
        **kwargs: `name` and `dtype`, as for any Keras loss.

    Reference:
        Szegedy et al. 2015, sec. 7, https://arxiv.org/abs/1512.00567
    """

    def __init__(self, label_smoothing: float = 0.0, **kwargs: Any):
        super().__init__(**{"reduction": "mean_with_sample_weight", **kwargs})
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss at each step `(B, T)` of tokens `(B, T)` and logits `(B, T, V)`, float32."""
        loss = ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        if not self.label_smoothing:
            return loss
        of_all = ops.logsumexp(y_pred, axis=-1) - ops.mean(y_pred, axis=-1)
        return (1 - self.label_smoothing) * loss + self.label_smoothing * of_all

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
