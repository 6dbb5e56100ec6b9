"""Where steps stand for `position=`; what the layers do with it is in their own tests."""

import inspect
import json
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers, masks
from kattn.layers import ALiBi, LearnedPositions, Position, RotaryEmbedding, T5RelativeBias
from kattn.layers.attention.positions import (
    aligned_positions,
    embed,
    new_positions,
    read_position,
    rotate,
    score_bias,
    step_positions,
)
from kattn.layers.nested_layers import layer_config
from tests.compute import run

KEEP = np.array([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
FROM_THE_FIRST = [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]
SEGMENTS = np.array([[0, 0, 1, 1], [5, 6, 6, 6], [0, 0, 0, 0]])
RESTARTED = [[0, 1, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3]]


def test_only_the_method_of_its_kind_is_used():
    x, q = ops.ones((1, 3, 8)), ops.ones((1, 3, 2, 4))
    for position in (None, ALiBi(), RotaryEmbedding()):
        assert embed(position, x, None) is x
    for position in (None, ALiBi(), LearnedPositions(4)):
        assert rotate(position, q, None) is q
    for position in (None, RotaryEmbedding(), LearnedPositions(4)):
        assert score_bias(position, q) is None
    assert score_bias(ALiBi(), q) is not None


def test_absolute_positions_count_from_the_first_real_step():
    keep, learned = ops.convert_to_tensor(KEEP), LearnedPositions(4)
    np.testing.assert_array_equal(run(step_positions, learned, None, keep), FROM_THE_FIRST)
    assert step_positions(learned, None, None) is None
    assert step_positions(None, None, keep) is None
    rotary = RotaryEmbedding()
    assert step_positions(rotary, None, keep) is None  # a shift changes nothing
    shifted = run(step_positions, rotary, None, keep, shifts_matter=True)
    np.testing.assert_array_equal(shifted, FROM_THE_FIRST)


def test_last_real_steps_are_aligned():
    """As without the padding: the first real key is at 0, the last query with the last key."""
    keep, one = ops.convert_to_tensor(KEEP[:2]), ops.convert_to_tensor([[False, True]] * 2)
    at_query, at_key = run(aligned_positions, 2, 4, one, keep)
    np.testing.assert_array_equal(at_key, FROM_THE_FIRST[:2])
    np.testing.assert_array_equal(at_query, [[1, 1], [2, 2]])
    at_query, at_key = run(aligned_positions, 4, 2, keep, None)
    np.testing.assert_array_equal(at_key, [0, 1])
    np.testing.assert_array_equal(at_query, [[0, 0, 0, 1], [-1, 0, 1, 2]])
    at_query, at_key = run(aligned_positions, 2, 3, None, None)
    np.testing.assert_array_equal(at_query, [1, 2])
    np.testing.assert_array_equal(at_key, [0, 1, 2])


def test_segments_begin_anew():
    keep, learned = ops.convert_to_tensor(KEEP), LearnedPositions(4)
    mask = masks.Causal() & masks.Segments(SEGMENTS)
    np.testing.assert_array_equal(run(step_positions, learned, None, keep, mask), RESTARTED)
    at = ops.convert_to_tensor(np.array([[3], [1], [0]], "int32"))
    np.testing.assert_array_equal(run(new_positions, learned, at, mask), [[1], [0], [0]])
    assert new_positions(learned, at, masks.Causal()) is at
    assert new_positions(RotaryEmbedding(), at, mask) is at
    assert new_positions(None, at, mask) is None


def test_given_positions_are_used_as_they_are():
    given = np.array([3, 1, 2, 0])
    assert step_positions(RotaryEmbedding(), given, None) is given
    for position in (None, ALiBi()):
        with pytest.raises(ValueError, match="`positions` can only be given if"):
            step_positions(position, given, None)


def saved_positions(model, path):
    """The config of each position layer in the file of a model, as text."""
    model.save(path)
    with zipfile.ZipFile(path) as file:
        layers = json.loads(file.read("config.json"))["config"]["layers"]
    return [json.dumps(x["config"]["position"]) for x in layers if "position" in x["config"]]


def sharing_layers():
    """A model whose first and third attention layers share their position layer."""
    table, node = T5RelativeBias(name="table"), keras.Input((5, 8))
    x = layers.SelfAttention(2, position=table, name="a")(node)
    x = layers.SelfAttention(2, position=T5RelativeBias(name="table"), name="b")(x)
    return keras.Model(node, layers.CrossAttention(2, position=table, name="c")(x, node))


def test_a_model_is_saved_alike_in_any_process(tmp_path):
    """Not by addresses in memory, which two models of one process have of their own, too."""
    first, second = sharing_layers(), sharing_layers()
    saved = saved_positions(first, tmp_path / "model.keras")
    assert saved == saved_positions(second, tmp_path / "again.keras")
    assert [json.loads(x)["shared_object_id"] for x in saved] == [0, 1, 0]
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    a, b, c = (loaded.get_layer(name).position for name in "abc")
    assert a is c
    assert a is not b
    assert saved == saved_positions(loaded, tmp_path / "loaded.keras")
    configs = [json.dumps([x.get_config() for x in model.layers[1:]]) for model in (first, second)]
    assert configs[0] == configs[1]
    assert "shared_object_id" not in configs[0]


@pytest.mark.parametrize("position_first", [True, False])
def test_a_position_layer_that_is_a_layer_of_the_model_too(tmp_path, position_first):
    position, node = LearnedPositions(5), keras.Input((5, 8))
    attention = layers.SelfAttention(2, position=position, name="attention")
    order = (position, attention) if position_first else (attention, position)
    keras.Model(node, order[1](order[0](node))).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("attention").position is loaded.get_layer(position.name)


HAVE_POSITIONS = [
    layer
    for layer in vars(layers).values()
    if inspect.isclass(layer) and "position" in inspect.signature(layer).parameters
]


@pytest.mark.parametrize("cls", HAVE_POSITIONS)
def test_configs_are_alike_in_any_process(cls):
    """Each layer with positions, of those to come, too."""
    taken = inspect.signature(cls).parameters
    sizes = {name: 4 for name in ("num_heads", "key_dim") if name in taken}
    positions = [RotaryEmbedding(name="rotary") for _ in range(2)]

    def new(position):
        rnn = {"rnn": keras.layers.GRU(8, return_sequences=True)} if "rnn" in taken else {}
        return cls(**rnn, **sizes, position=position, name="layer")

    made = [new(position) for position in positions]
    configs = [json.dumps(layer.get_config()) for layer in made]
    assert configs[0] == configs[1]


def test_reading_the_argument():
    position = RotaryEmbedding(base=50.0)
    assert read_position(position) is position
    again = read_position(layer_config(position))
    assert isinstance(again, RotaryEmbedding)
    assert again.base == 50.0
    assert read_position(None) is None
    assert layer_config(None) is None
    with pytest.raises(ValueError, match=r"`position` must be a position layer.*'rotary'"):
        read_position("rotary")
    with pytest.raises(ValueError, match="derives from InputPosition, HeadPosition or ScoreBias"):
        read_position(Position())
    with pytest.raises(ValueError, match=r"linear attention has no scores.*ALiBi"):
        read_position(ALiBi(), scores=False)
