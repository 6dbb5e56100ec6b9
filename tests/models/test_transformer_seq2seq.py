import functools

import keras
import numpy as np
import pytest

from kattn import layers
from kattn.models import TransformerSeq2Seq
from tests import oracle, transformer_oracle
from tests.checks import check_fixture, check_training, plain, ready
from tests.compute import assert_close, result, run
from tests.decode_checks import check_decodes
from tests.transformer_oracle import under, weights_of

TARGET = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]], "int32")  # of 11
SOURCE = np.array([[2, 7, 1, 8], [2, 8, 1, 8], [4, 5, 9, 0]], "int32")
PAIR = [SOURCE, TARGET]
KEEP_TARGET = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
KEEP_SOURCE = np.array([[1, 1, 0, 1], [0] * 4, [1] * 4], bool)


def t5(**options):
    """A model of two and two blocks of width 8 with the positions of T5."""
    given = {
        "position": layers.T5RelativeBias(8, 16),
        "decoder_position": layers.T5RelativeBias(8, 16, bidirectional=False),
        "hidden_dim": 6,
        "norm": "rms",
    }
    return TransformerSeq2Seq(11, 2, 2, 8, **{**given, **options})


def plain_positions(**options):
    """The same with positions that are added to the vectors, and untied logits."""
    given = {"position": layers.LearnedPositions(7), "tie_embeddings": False, "norm": "layer"}
    return t5(**{**given, "decoder_position": layers.SinusoidalPositions(), **options})


def t5_bias(table, steps, *, bidirectional):
    """`(1, N, T, T)` of a table `(N, R)`, by the distance from query to key."""
    buckets = [
        [oracle.t5_bucket(j - i, 8, 16, bidirectional) for j in range(steps)] for i in range(steps)
    ]
    return np.repeat(table[:, np.array(buckets)][None], 3, axis=0)


def expected_logits(model, source, target, keep_source, keep_target):
    """Vaswani et al. 2017, sec. 3.1, with the positions of Raffel et al. 2019, sec. 2.1."""
    w = weights_of(model)
    table, context = w["source/tokens/embeddings"], None
    for name, role, tokens, keep in (
        ("encoder", "position", source, keep_source),
        ("decoder", "decoder_position", target, keep_target),
    ):
        steps, is_source = tokens.shape[1], context is None
        see = keep[:, None, None] & keep[:, None, :, None]
        see = see if is_source else see & oracle.causal(steps, steps)
        numbers = w[f"{name}/block0/attention/{role}/table"]
        across = keep_source[:, None, None] & keep[:, None, :, None]
        x = transformer_oracle.stack(
            under(w, name),
            table[np.where(keep, tokens, 0)],
            [np.repeat(see, 2, axis=1)] * 2,
            2,
            bias=t5_bias(numbers, steps, bidirectional=is_source),
            context=context,
            keep_context=np.repeat(across, 2, axis=1),
        )
        context = x
    return x @ w.get("head/kernel", table.T)


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}])
def test_matches_oracle(options):
    model = ready(functools.partial(t5, **options), PAIR)
    everything = np.ones_like(KEEP_SOURCE), np.ones_like(KEEP_TARGET)
    assert_close(run(model, PAIR), expected_logits(model, *PAIR, *everything))
    given = [np.where(KEEP_SOURCE, SOURCE, -1), np.where(KEEP_TARGET, TARGET, 99)]
    found = run(model, given, mask=(KEEP_SOURCE, KEEP_TARGET))
    wanted = expected_logits(model, *PAIR, KEEP_SOURCE, KEEP_TARGET)
    assert_close(found[KEEP_TARGET], wanted[KEEP_TARGET])


def test_padding_token_is_that_of_the_source():
    """At either side; a target begins with it in T5."""
    model = ready(functools.partial(plain_positions, padding_token=0), PAIR)
    target = np.pad(TARGET[:, :3], [(0, 0), (1, 0)])
    wanted = run(model, [SOURCE[:, :3], target])
    for sides in ((0, 2), (2, 0)):
        found = run(model, [np.pad(SOURCE[:, :3], [(0, 0), sides]), target])
        assert_close(found, wanted)
    changed = target.copy()
    changed[:, 0] = 1
    assert np.abs(run(model, [SOURCE[:, :3], changed]) - wanted).max() > 1e-2


@pytest.mark.parametrize("make", [t5, plain_positions])
def test_decoding(make):
    """Of a target, step by step, by a source that is encoded once."""

    def call(model, target, source, context_mask=None):
        return model((source, target), mask=(context_mask, None))

    check_decodes(lambda: ready(make, PAIR), [TARGET, SOURCE], call)


def full(**options):
    """As far off its defaults as it goes."""
    given = {
        "tie_embeddings": False,
        "padding_token": 10,
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "hidden_dropout": 0.1,
        "use_bias": False,
        "activation": "geglu_tanh",
        "seed": 5,
    }
    return t5(**{**given, **options})


def test_one_step_of_fit_trains_all():
    check_training(full, PAIR)


def test_models_of_other_backends():
    check_fixture(full, "transformer_seq2seq")


def test_config():
    model = ready(full, PAIR)
    again = TransformerSeq2Seq.from_config(model.get_config())
    assert plain(again.get_config()) == plain(model.get_config())
    again.build([x.shape for x in PAIR])
    again.set_weights(model.get_weights())
    assert_close(result(again, PAIR), result(model, PAIR))
    seeds = [block.seed for block in model.blocks]
    assert seeds == [5, 15, 25, 35]


def test_half_precision():
    reference = ready(t5, PAIR)
    model = ready(functools.partial(t5, dtype="mixed_bfloat16"), PAIR)
    model.set_weights(reference.get_weights())
    found = model(PAIR)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    found = run(keras.ops.cast, found, "float32")
    assert_close(found, run(reference, PAIR), 6e-2)


def test_bad_input():
    with pytest.raises(ValueError, match=r"`source` must have rank 2"):
        t5()([SOURCE[0], TARGET])
    with pytest.raises(ValueError, match=r"`target` must have rank 2"):
        t5()([SOURCE, TARGET[..., None]])
