"""Cross-entropy and accuracy, by hand."""

import keras
import numpy as np
import pytest

from recipes import harness


def test_cross_entropy_and_accuracy():
    logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]) + np.array([[1000.0], [-3.0]])
    scores = harness.cross_entropy_and_accuracy(logits, np.array([1, 2]))
    assert scores == pytest.approx({"loss": -np.log(0.25 * 0.75) / 2, "accuracy": 0.5})


def test_next_token_loss_counts_each_real_target_once():
    class Model:
        """The more the token, the more likely is a 1."""

        def predict(self, x, batch_size, verbose):
            assert len(x) % batch_size == 0
            return np.stack([np.zeros(x.shape), x.astype(float)], axis=-1)

    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, 3, (35, 4)), rng.integers(0, 2, (35, 2))
    is_real = rng.random((35, 2)) < 0.7
    found = harness.next_token_loss(Model(), inputs, targets, is_real, batch_size=2)
    x = inputs[:, 2:]
    losses = np.log(1 + np.exp(x)) - x * targets
    assert found == pytest.approx(losses[is_real].mean())


def test_loss_by_weight_counts_each_label_alike():
    """In batches of 3, of which the last has one example, and one has no weight but zeros."""
    from recipes.harness.losses import TokenCrossentropy

    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(7, 2, 3)).astype("float32"), rng.integers(0, 3, (7, 2))
    weights = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 1]], "float32")
    shift = rng.normal(size=logits.shape).astype("float32")
    inputs = [keras.Input((2, 3)), keras.Input((2, 3))]
    model = keras.Model(inputs, inputs[0] + inputs[1])
    model.compile(loss=TokenCrossentropy())
    found = harness.loss_by_weight(model, (logits, shift), y, weights, 3)
    z = logits + shift
    losses = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[..., None], axis=-1)[..., 0]
    assert found == pytest.approx(losses[weights == 1].mean(), rel=1e-5)
