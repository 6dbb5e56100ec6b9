"""Cross-entropy of tokens, against its definition with smoothed labels."""

import keras
import numpy as np
import pytest

from recipes.harness.losses import TokenCrossentropy


def oracle(tokens, logits, weights, smoothing):
    total = 0.0
    for b, t in np.ndindex(tokens.shape):
        p = np.exp(logits[b, t] - logits[b, t].max())
        p /= p.sum()
        label = np.full(len(p), smoothing / len(p))
        label[tokens[b, t]] += 1 - smoothing
        total -= weights[b, t] * (label * np.log(p)).sum()
    return total / weights.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mean_over_the_tokens_that_count(rng, smoothing):
    logits = 3 * rng.normal(size=(3, 4, 5))
    tokens = rng.integers(0, 5, (3, 4))
    weights = (rng.random((3, 4)) < 0.6).astype("float32")
    loss = TokenCrossentropy(smoothing)
    found = float(loss(tokens, logits.astype("float32"), weights))
    assert found == pytest.approx(oracle(tokens, logits, weights, smoothing), rel=1e-5)
    whole = float(loss(tokens, logits.astype("float32")))
    assert whole == pytest.approx(oracle(tokens, logits, np.ones((3, 4)), smoothing), rel=1e-5)


def test_logits_in_half_precision(rng):
    logits = rng.normal(size=(2, 3, 5)).astype("float16")
    tokens = rng.integers(0, 5, (2, 3))
    found = float(TokenCrossentropy(0.1)(tokens, logits))
    wanted = oracle(tokens, logits.astype("float64"), np.ones((2, 3)), 0.1)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_config():
    loss = keras.losses.deserialize(keras.losses.serialize(TokenCrossentropy(0.2, name="n")))
    assert (loss.label_smoothing, loss.name, loss.reduction) == (
        0.2,
        "n",
        "mean_with_sample_weight",
    )
