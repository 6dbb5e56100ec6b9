import numpy as np
import pytest
from keras import ops

from kattn.presets import from_keras_hub
from tests.checks import shake
from tests.compute import quick, run
from tests.presets.architectures import KEEP, TOKENS, TYPES

SIZES = {
    "vocabulary_size": 17,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "max_sequence_length": 9,
}


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub").models


def test_gpt2(hub):
    backbone = hub.GPT2Backbone(**SIZES, dropout=0.2)
    shake(backbone)
    hidden = backbone.predict({"token_ids": TOKENS, "padding_mask": KEEP}, verbose=0)
    table = run(ops.copy, backbone.token_embedding.embeddings)
    model = from_keras_hub(backbone)
    found = run(quick(lambda tokens: model(tokens, mask=KEEP)), TOKENS)
    np.testing.assert_allclose(found[KEEP], (hidden @ table.T)[KEEP], atol=1e-4)
    assert model.options.dropout == model.options.attention_dropout == 0.2


def test_bert(hub):
    backbone = hub.BertBackbone(**SIZES, num_segments=2)
    shake(backbone)
    inputs = {"token_ids": TOKENS, "segment_ids": TYPES, "padding_mask": KEEP}
    pooled = backbone.predict(inputs, verbose=0)["pooled_output"]
    model = from_keras_hub(backbone, num_classes=3)
    kernel, bias = (run(ops.copy, weight) for weight in model.weights[-2:])
    found = run(quick(lambda tokens: model(tokens, mask=KEEP, token_types=TYPES)), TOKENS)
    assert kernel.shape == (8, 3)
    np.testing.assert_allclose(found, pooled @ kernel + bias, atol=1e-4)


def test_another_class():
    with pytest.raises(ValueError, match=r"`backbone` must be one of GPT2Backbone, BertBackbone"):
        from_keras_hub(np.ones(3))
