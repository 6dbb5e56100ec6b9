"""What each score must do: `check_score(make, kind)`, against `tests.attention_rnn_oracle`."""

import keras
import numpy as np
from keras import ops

from tests import attention_rnn_oracle as oracle
from tests.checks import plain, shake
from tests.compute import assert_close, quick, run


def check_score(make, kind, heads=1):
    """Scores of a few states and a memory, in float32 and half; a config that comes back.

    Args:
        make: `make(**options)` gives a new score, off its defaults.
        kind: Name that the oracle has for the score.
        heads: Number of its heads.
    """
    rng = np.random.default_rng(0)
    query, memory = (rng.normal(size=size).astype("float32") for size in ((2, 1, 4), (2, 5, 6)))
    before = rng.uniform(size=(2, heads, 5)).astype("float32")
    score = make()
    score.build(query.shape, memory.shape)
    shake(score)
    w = {
        x.path.split("/", 1)[1]: run(ops.convert_to_tensor, x).astype(float) for x in score.weights
    }

    def scores(query, memory):
        keys, values = score.project(memory)
        return score.score(query, keys, before), values

    found, values = run(quick(scores), query, memory)
    assert values.shape[-1] * values.shape[1] == score.context_width(6)
    for b in range(2):
        wanted = oracle.scores_of(w, kind, query[b, 0], memory[b], before[b], heads)
        assert_close(found[b, :, 0], wanted)
        assert_close(values[b], oracle.values_of(w, kind, memory[b].astype(float), heads))
    assert score(query, memory).shape == (2, heads, 1, 5)
    again = type(score).from_config(score.get_config())
    assert plain(again.get_config()) == plain(score.get_config())
    half = make(dtype="mixed_bfloat16")
    half.build(query.shape, memory.shape)
    half.set_weights(score.get_weights())
    keys, _ = half.project(memory.astype("float32"))
    rough = half.score(ops.cast(query, "bfloat16"), keys, before)
    assert keras.backend.standardize_dtype(rough.dtype) == "float32"
    assert_close(run(ops.convert_to_tensor, rough), found, 6e-2)
