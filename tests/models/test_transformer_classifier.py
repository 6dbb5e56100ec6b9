import functools

import keras
import numpy as np
import pytest

from kattn import layers
from kattn.models import TransformerClassifier
from tests import transformer_oracle
from tests.checks import (
    check_config,
    check_fixture,
    check_precision,
    check_saving,
    check_sublayers,
    check_training,
    ready,
)
from tests.compute import assert_close, run
from tests.transformer_oracle import norm, under, weights_of

TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]], "int32")  # of 11
TYPES = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 1], [1, 1, 1, 0, 0]], "int32")
KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0, 0, 1, 1, 0]], bool)
BERT = {
    "pooling": "first",
    "use_pooler": True,
    "num_token_types": 2,
    "use_embedding_norm": True,
    "placement": "post",
}


def make(**options):
    """A model of two blocks of width 8, 11 tokens and 3 classes."""
    position = layers.LearnedPositions(6)
    return TransformerClassifier(
        11, 3, 2, 2, 8, **{"position": position, "hidden_dim": 6, **options}
    )


def expected_states(model, tokens, keep, types=None):
    """Devlin et al. 2018, sec. 3: the vectors of all steps."""
    w, options = weights_of(model), model.options
    positions = np.maximum(np.arange(tokens.shape[1]) - keep.argmax(1)[:, None], 0)
    x = w["embedding/tokens/embeddings"][np.where(keep, tokens, 0)]
    if model.num_token_types:
        x = x + w["embedding/types/embeddings"][np.zeros_like(tokens) if types is None else types]
    x = x + w["embedding/position/table"][positions]
    if model.use_embedding_norm:
        x = norm(w, "embedding/norm", x)
    see = keep[:, None, None] & keep[:, None, :, None]
    see = [np.repeat(see, 2, axis=1)] * 2
    return transformer_oracle.stack(under(w, "encoder"), x, see, 2, placement=options.placement)


def expected_logits(model, tokens, keep, types=None):
    """Sec. 3.2 and 3.3: of one vector."""
    w, x = weights_of(model), expected_states(model, tokens, keep, types)
    steps = [np.flatnonzero(row)[: 1 if model.pooling == "first" else None] for row in keep]
    pooled = np.stack([x[b, seen].mean(axis=0) for b, seen in enumerate(steps)])
    if model.use_pooler:
        pooled = np.tanh(pooled @ w["pooler/kernel"] + w["pooler/bias"])
    return pooled @ w["head/kernel"] + w["head/bias"]


@pytest.mark.parametrize("options", [{}, BERT, {"pooling": "first"}])
def test_matches_oracle(options):
    model = ready(functools.partial(make, **options), [TOKENS])
    everything = np.ones_like(KEEP)
    assert_close(run(model, TOKENS), expected_logits(model, TOKENS, everything))
    given, types = {"mask": KEEP}, None
    if model.num_token_types:
        given["token_types"] = types = TYPES
    found = run(model, np.where(KEEP, TOKENS, 99), **given)
    assert_close(found, expected_logits(model, TOKENS, KEEP, types))
    states = run(model.encode, np.where(KEEP, TOKENS, 99), **given)
    assert_close(states[KEEP], expected_states(model, TOKENS, KEEP, types)[KEEP])


def full(**options):
    """As far off its defaults as it goes."""
    given = {
        **BERT,
        "position": layers.T5RelativeBias(4, 8),
        "window": 3,
        "activation": "gelu_tanh",
        "norm": "rms",
        "dropout": 0.1,
        "padding_token": 10,
        "seed": 2,
    }
    return make(**{**given, **options})


@pytest.mark.parametrize("check", [check_config, check_sublayers, check_precision, check_training])
def test_as_layers(check):
    check(full, [TOKENS])


def test_saved_with_positions_at_the_input():
    check_saving(functools.partial(make, **BERT), [TOKENS])


def test_models_of_other_backends():
    check_fixture(full, "transformer_classifier")


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_changes_nothing(pooling):
    """By a token at either side, as `fit` sees it; nor does an implicit mask say else."""
    model = ready(functools.partial(make, pooling=pooling, padding_token=0), [TOKENS])
    wanted = run(model, TOKENS[:, :3])
    for sides in ((0, 2), (2, 0), (1, 1)):
        padded = np.pad(TOKENS[:, :3], [(0, 0), sides])
        assert_close(run(model, padded), wanted)
    assert_close(run(model, TOKENS, mask=np.arange(5) < np.full((3, 1), 3)), wanted)
    assert np.isfinite(run(model, np.zeros((1, 3), "int32"))).all()  # nothing is real


def test_token_types_of_a_functional_model():
    """They reach `fit` as a second input."""
    nodes = [keras.Input((5,), dtype="int32") for _ in range(2)]
    model = make(**BERT)
    whole = keras.Model(nodes, model(nodes[0], token_types=nodes[1]))
    whole.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    whole.fit([TOKENS, TYPES], np.array([0, 2, 1]), verbose=0)
    found = whole.predict([TOKENS, TYPES], verbose=0)
    assert_close(found, expected_logits(model, TOKENS, np.ones_like(KEEP), TYPES))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`pooling` must be one of mean, first.*'max'"):
        make(pooling="max")
    with pytest.raises(ValueError, match=r"`num_classes` must be an integer >= 1.*num_classes=0"):
        TransformerClassifier(11, 0, 2, 2, 8)
    with pytest.raises(ValueError, match=r"`num_token_types` must be an integer >= 1"):
        make(num_token_types=0)
    with pytest.raises(ValueError, match=r"must be made with `num_token_types`"):
        make()(TOKENS, token_types=TYPES)
