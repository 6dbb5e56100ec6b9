"""What a classifier's logits are worth."""

import numpy as np


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
