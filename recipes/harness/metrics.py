"""What logits are worth."""

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
