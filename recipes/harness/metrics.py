"""What logits are worth."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.harness.fitting import predict


def cross_entropy_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy in nats, and the fraction of examples whose largest logit is right.

    Args:
        logits: Logits of the model, float64, shape `(count, classes)`.
        labels: Numbers of the true classes, integer, shape `(count,)`.
    """
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    loss = log_sum - logits[np.arange(len(labels)), labels]
    return {"loss": float(loss.mean()), "accuracy": float((logits.argmax(-1) == labels).mean())}


def next_token_loss(
    model: Any,
    inputs: np.ndarray,
    targets: np.ndarray,
    is_real: np.ndarray,
    *,
    batch_size: int = 64,
) -> float:
    """Mean cross-entropy in nats of the last steps of windows, in pieces that take little memory.

    Args:
        model: Model that gives logits for each step.
        inputs: Tokens, integer, shape `(count, steps)`.
        targets: The tokens behind the last `counted` steps, integer, shape `(count, counted)`.
        is_real: Which of the targets count, bool, shape `(count, counted)`.
        batch_size: Number of windows that the model reads at once.
    """
    total, piece = 0.0, 16 * batch_size
    for start in range(0, len(inputs), piece):
        chosen = slice(start, start + piece)
        logits = predict(model, inputs[chosen], batch_size)[:, -targets.shape[1] :]
        real = is_real[chosen]
        found = cross_entropy_and_accuracy(logits[real], targets[chosen][real])
        total += found["loss"] * real.sum()
    return float(total / is_real.sum())


def loss_by_weight(
    model: Any, x: Sequence[np.ndarray], y: np.ndarray, weights: np.ndarray, batch_size: int
) -> float:
    """The loss that a model was compiled with, as a mean over all weights.

    Keras's `evaluate` takes the mean of the batches by their numbers of examples instead, so that a
    token counts the more, the fewer there are in its batch.

    Args:
        model: A compiled model, whose loss divides by the sum of the weights of a batch.
        x: Inputs of the model, arrays with a row for each example.
        y: Labels, shape `(count, T)`.
        weights: Weights of the labels, shape `(count, T)`.
        batch_size: Number of examples that the model reads at once.
    """
    total = 0.0
    for start in range(0, len(y), batch_size):
        part = slice(start, start + batch_size)
        inputs = tuple(each[part] for each in x)
        options = {"sample_weight": weights[part], "batch_size": batch_size, "verbose": 0}
        found = model.evaluate(inputs, y[part], return_dict=True, **options)
        total += found["loss"] * weights[part].sum()
    return float(total / weights.sum())
