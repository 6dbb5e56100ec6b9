"""ScoreBias: a subclass of one's own, alone and in attention layers."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import biases
from kattn.grid import Grid
from kattn.layers import LinearAttention, SelfAttention, SelfAttention2D
from kattn.layers.position.score_bias import ScoreBias
from tests import position_checks
from tests.checks import shake
from tests.compute import assert_close, run
from tests.decode_checks import in_pieces


@keras.saving.register_keras_serializable("tests")
class Slopes(ScoreBias):
    """Subtracts the distance times a learned number, one for each head."""

    def attach(self, *, width, num_heads, key_dim):
        if self.remember_sizes(num_heads=num_heads):
            self.slopes = self.add_weight(shape=(num_heads,), initializer="ones", name="slopes")

    def bias(self, query, grid=None):
        self.check_sequence(grid)
        return biases.ALiBi(ops.convert_to_tensor(self.slopes))


class ByQuery(ScoreBias):
    """Adds the first channel of the query where the key comes after it."""

    def bias(self, query, grid=None):
        first = ops.transpose(query[..., :1], (0, 2, 1, 3))  # (B, N, T, 1)
        values = ops.concatenate([ops.zeros_like(first), ops.zeros_like(first), first], axis=-1)
        return biases.Clipped(values)


def slopes_of(position):
    return run(ops.convert_to_tensor, position.slopes).astype(float)


def distances(queries, keys):
    return np.abs(np.arange(queries)[:, None] + keys - queries - np.arange(keys))


def changes(position):
    return {"bias": -slopes_of(position)[:, None, None] * distances(5, 5)}


@pytest.mark.parametrize("with_query", [False, True])
def test_alone(rng, with_query):
    position, scores = Slopes(), rng.normal(size=(2, 3, 4, 5)).astype("float32")
    query = [rng.normal(size=(2, 4, 3, 6)).astype("float32")] if with_query else []
    shake(position, [scores, *query])
    expected = scores - slopes_of(position)[:, None, None] * distances(4, 5)
    assert_close(run(position, scores, *query), expected)


def test_alone_by_query(rng):
    scores = rng.normal(size=(2, 3, 4, 4)).astype("float32")
    query = rng.normal(size=(2, 4, 3, 6)).astype("float32")
    after = np.arange(4)[:, None] < np.arange(4)
    expected = scores + query[..., 0].transpose(0, 2, 1)[..., None] * after
    assert_close(run(ByQuery(), scores, query), expected)
    with pytest.raises(ValueError, match=r"`query` must have shape \(B, T, N, D\) where `scores`"):
        ByQuery()(scores, query.swapaxes(1, 2))


def test_a_symbolic_call():
    scores = keras.Input((3, None, None))
    assert Slopes()(scores).shape == (None, 3, None, None)
    assert ByQuery()(scores, keras.Input((None, 3, 4))).shape == (None, 3, None, None)


def test_in_a_model(tmp_path):
    position_checks.check_in_a_model(Slopes, changes, tmp_path)


def test_sharing():
    position_checks.check_sharing(Slopes, "num_heads")


@pytest.mark.parametrize("kind", [Slopes, ByQuery])
def test_decoding_equals_the_call(rng, kind):
    layer = SelfAttention(2, causal=True, position=kind())
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    shake(layer, [x])
    assert_close(run(in_pieces, layer, x, [0, 3, 4, 6], 6), run(layer, x))


def test_it_gets_the_grid_of_a_map(rng):
    grids = []

    class Seen(ScoreBias):
        def bias(self, query, grid=None):
            grids.append(grid)
            return biases.ALiBi([0.5, 0.25])

    SelfAttention2D(2, key_stride=2, position=Seen())(rng.normal(size=(2, 3, 5, 8)))
    assert set(grids) == {Grid((3, 5), 2)}


def test_a_bias_of_sequences_refuses_a_grid(rng):
    message = r"Slopes has a bias for sequences only; use RelativeTable for the cells of a grid; "
    with pytest.raises(ValueError, match=message + r"received: grid=Grid\(sides=\(3, 5\)"):
        SelfAttention2D(2, position=Slopes())(rng.normal(size=(2, 3, 5, 8)))
    assert Slopes().check_sequence(None) is None


def test_linear_attention_refuses_it():
    with pytest.raises(ValueError, match="linear attention has no scores"):
        LinearAttention(2, position=Slopes())


def test_explicit_positions_are_refused(rng):
    layer = SelfAttention(2, position=Slopes())
    with pytest.raises(ValueError, match="a bias goes by the order of the keys"):
        layer(rng.normal(size=(2, 5, 8)), positions=np.arange(5))


def test_bad_scores(rng):
    with pytest.raises(ValueError, match=r"`scores` must have rank 4.*\(3, 4, 5\)"):
        Slopes()(np.ones((3, 4, 5), "float32"))


def test_bias_must_be_overridden():
    with pytest.raises(NotImplementedError, match="ScoreBias must override `bias`"):
        ScoreBias().bias(np.zeros((1, 2, 3, 4)))
