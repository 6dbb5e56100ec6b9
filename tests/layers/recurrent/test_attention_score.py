import keras
import numpy as np
from keras import ops

from kattn.layers import AttentionRNN, AttentionScore
from tests.compute import assert_close, result


@keras.saving.register_keras_serializable("tests")
class NearestScore(AttentionScore):
    """A score of a user: minus the distance of state and memory."""

    def score(self, query, keys, weights=None):
        return -ops.sum(ops.square(query[:, None, :, None] - keys[:, :, None]), axis=-1)


def test_a_score_of_a_user(rng):
    """What a subclass must have is `score`; keys and values are the memory itself."""
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    layer = AttentionRNN(keras.layers.GRUCell(4), NearestScore(), attend="after")
    layer.build(x.shape)
    states = result(AttentionRNN(layer.cell, "dot", attend="after", output="both"), x)[..., :4]
    distance = np.square(states[:, :, None] - x[:, None]).sum(-1)
    weights = np.exp(-distance) / np.exp(-distance).sum(-1, keepdims=True)
    assert_close(result(layer.attention_weights, x)[:, 0], weights)
