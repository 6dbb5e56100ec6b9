"""Writes the files that `tests.checks.check_fixture` reads, for the backend at hand.

for b in tensorflow jax torch; do KERAS_BACKEND=$b python -m tests.write_fixtures NAME; done

Without names all are written anew.
"""

import importlib
import sys

import numpy as np

from tests.callbacks.update.test_optimizer_hook import write_trained
from tests.checks import write_fixture

# Each of these test modules has `make`, and inputs of these shapes.
LAYERS = {
    "self_attention": ("tests.layers.attention.test_self_attention", [(3, 5, 8)]),
    "cross_attention": ("tests.layers.attention.test_cross_attention", [(3, 5, 8), (3, 4, 6)]),
    "differential_attention": (
        "tests.layers.attention.test_differential_attention",
        [(3, 5, 8)],
    ),
    "linear_attention": ("tests.layers.attention.test_linear_attention", [(3, 5, 8)]),
    "gated_linear_attention": (
        "tests.layers.attention.test_gated_linear_attention",
        [(3, 5, 8)],
    ),
    "min_gru": ("tests.layers.recurrent.test_min_gru", [(3, 5, 8)]),
    "min_lstm": ("tests.layers.recurrent.test_min_lstm", [(3, 5, 8)]),
    "rglru": ("tests.layers.recurrent.test_rglru", [(3, 5, 8)]),
    "sru": ("tests.layers.recurrent.test_sru", [(3, 5, 8)]),
    "sru_plus_plus": ("tests.layers.recurrent.test_sru_plus_plus", [(3, 5, 8)]),
    "gated_delta_net": ("tests.layers.recurrent.test_gated_delta_net", [(3, 5, 8)]),
    "griffin_recurrence": ("tests.layers.recurrent.test_griffin_recurrence", [(3, 5, 8)]),
    "causal_depthwise_conv1d": (
        "tests.layers.recurrent.test_causal_depthwise_conv1d",
        [(3, 5, 8)],
    ),
    "decoding_rnn": ("tests.layers.recurrent.test_decoding_rnn", [(3, 5, 8)]),
    "self_attention_rnn": (
        "tests.layers.recurrent.test_self_attention_rnn",
        [(3, 5, 8)],
    ),
    "structured_self_attention": (
        "tests.layers.recurrent.test_structured_self_attention",
        [(3, 5, 8)],
    ),
    "r_transformer_block": (
        "tests.layers.recurrent.test_r_transformer_block",
        [(3, 5, 8)],
    ),
    "sha_rnn_block": ("tests.layers.recurrent.test_sha_rnn_block", [(3, 5, 8)]),
    "alibi": ("tests.layers.position.test_alibi", [(2, 3, 5, 7)]),
    "t5_relative_bias": ("tests.layers.position.test_t5_relative_bias", [(2, 3, 9, 9)]),
    "shaw_relative": (
        "tests.layers.position.test_shaw_relative",
        [(2, 3, 5, 7), (2, 5, 3, 4)],
    ),
    "relative_table": ("tests.layers.position.test_relative_table", [(2, 3, 6, 6)]),
    "multi_head_attention": (
        "tests.layers.attention.test_multi_head_attention",
        [(3, 5, 6), (3, 5, 7), (3, 5, 2)],
    ),
    "sinusoidal_positions": (
        "tests.layers.position.test_sinusoidal_positions",
        [(3, 6, 7)],
    ),
    "learned_positions": ("tests.layers.position.test_learned_positions", [(3, 5, 4)]),
    "rotary_embedding": ("tests.layers.position.test_rotary_embedding", [(3, 6, 2, 12)]),
    "attention_rnn": ("tests.layers.recurrent.test_attention_rnn", [(3, 5, 8)]),
    "lstmn": ("tests.layers.recurrent.test_lstmn", [(3, 5, 8)]),
    "self_attention_2d": ("tests.layers.spatial.test_self_attention_nd", [(2, 5, 6, 8)]),
    "window_attention": ("tests.layers.spatial.test_window_attention", [(2, 5, 4, 8)]),
    "axial_attention": ("tests.layers.spatial.test_axial_attention", [(2, 5, 4, 8)]),
    "neighborhood_attention_2d": (
        "tests.layers.spatial.test_neighborhood_attention",
        [(3, 3, 4, 8)],
    ),
    "squeeze_excite": ("tests.layers.spatial.test_squeeze_excite", [(3, 5, 8)]),
    "efficient_channel_attention": (
        "tests.layers.spatial.test_efficient_channel_attention",
        [(3, 5, 8)],
    ),
    "cbam": ("tests.layers.spatial.test_cbam", [(3, 5, 8)]),
    "coordinate_attention": (
        "tests.layers.spatial.test_coordinate_attention",
        [(3, 5, 8)],
    ),
    "global_context": ("tests.layers.spatial.test_global_context", [(3, 5, 8)]),
    "attention_gate": (
        "tests.layers.spatial.test_attention_gate",
        [(3, 5, 7, 6), (3, 2, 3, 4)],
    ),
    "cross_covariance_attention": (
        "tests.layers.spatial.test_cross_covariance_attention",
        [(3, 5, 8)],
    ),
    "deformable_attention_2d": (
        "tests.layers.spatial.test_deformable_attention_2d",
        [(3, 5, 6, 6)],
    ),
    "attention_pooling": ("tests.layers.spatial.test_attention_pooling", [(3, 5, 8)]),
}
# Each of these has `full`, and takes tokens `(B, T)`, series `(B, T, M)`, or images.
MODELS = {
    "transformer_lm": ("tests.models.test_transformer_lm", [(3, 5)]),
    "transformer_classifier": ("tests.models.test_transformer_classifier", [(3, 5)]),
    "transformer_seq2seq": ("tests.models.test_transformer_seq2seq", [(3, 4), (3, 5)]),
    "attention_seq2seq": ("tests.models.test_attention_seq2seq", [(3, 4), (3, 5)]),
    "time_series_transformer": ("tests.models.test_time_series_transformer", [(3, 10, 2)]),
    "vision_transformer": ("tests.models.test_vision_transformer", [(3, 4, 6, 2)]),
}

if __name__ == "__main__":
    names = sys.argv[1:] or [*LAYERS, *MODELS]
    for name, (module, shapes) in LAYERS.items():
        if name not in names:
            continue
        rng = np.random.default_rng(0)
        make = importlib.import_module(module).make
        write_fixture(make, [rng.normal(size=shape) for shape in shapes], name)
    for name, (module, shapes) in MODELS.items():
        if name not in names:
            continue
        rng = np.random.default_rng(0)
        inputs = [
            rng.integers(10, size=shape) if len(shape) == 2 else rng.normal(size=shape)
            for shape in shapes
        ]
        write_fixture(importlib.import_module(module).full, inputs, name)
    if not sys.argv[1:]:
        write_trained()
