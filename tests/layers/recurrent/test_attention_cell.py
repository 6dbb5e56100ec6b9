import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import AttentionCell, AttentionRNN, LocationScore, PredictedWindow
from tests.checks import plain, shake
from tests.compute import assert_close, result, run

KEEP_MEMORY = np.array([[1, 1, 0, 1], [1] * 4, [0] * 4], bool)


def cell_options(**options):
    """A cell with everything that can be a state."""
    given = {
        "attend": "after",
        "output": "both",
        "input_feeding": True,
        "window": PredictedWindow(2, 3),
        "memory_width": 5,
        "kernel_initializer": "he_normal",
    }
    score = LocationScore(4, filters=2, kernel_size=3)
    return AttentionCell(keras.layers.LSTMCell(6), score, **{**given, **options})


@pytest.mark.parametrize(
    "options", [{}, {"attend": "before", "input_feeding": False, "output": "attentional"}]
)
def test_in_a_loop_of_keras_it_is_the_layer(rng, options):
    """`keras.layers.RNN` around the cell gives what `AttentionRNN` gives."""
    cell = cell_options(**options)
    x = rng.normal(size=(3, 5, 7)).astype("float32")
    memory = rng.normal(size=(3, 4, 5)).astype("float32")
    cell.build((3, 7))
    shake(cell)
    rnn = keras.layers.RNN(cell, return_sequences=True)
    states = cell.initial_state(memory, KEEP_MEMORY)
    found = run(rnn, x, initial_state=states)
    given = {name: getattr(cell, name) for name in ("attend", "input_feeding", "window")}
    layer = AttentionRNN(cell.cell, cell.attention, output=cell.output_kind, **given)
    layer.build(x.shape, memory.shape)
    if cell.output_kind == "attentional":
        layer.weights[-1].assign(cell.weights[-1])
    wanted = result(layer, x, memory, memory_mask=KEEP_MEMORY)
    assert_close(found, wanted)


def test_in_a_functional_model(rng):
    """Of any batch size."""
    cell = cell_options()
    cell.build((None, 7))
    x, memory = keras.Input((5, 7)), keras.Input((4, 5))
    states = cell.initial_state(memory)
    y = keras.layers.RNN(cell, return_sequences=True)(x, initial_state=states)
    model = keras.Model([x, memory], y)
    shake(model)
    given = [rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 4, 5))]
    given = [each.astype("float32") for each in given]
    options = {name: getattr(cell, name) for name in ("attend", "input_feeding", "window")}
    layer = AttentionRNN(cell.cell, cell.attention, output=cell.output_kind, **options)
    layer.build(*[each.shape for each in given])
    assert_close(result(model, given), result(layer, *given))


def test_one_step_is_a_function_of_its_states(rng):
    """Nothing is kept in the cell: two memories can be gone through in turn."""
    cell = AttentionCell(keras.layers.GRUCell(4), "additive", memory_width=5)
    cell.build((2, 3))
    x = rng.normal(size=(2, 3)).astype("float32")
    first, second = (
        cell.initial_state(rng.normal(size=(2, n, 5)).astype("float32")) for n in (3, 6)
    )
    y, after = cell(x, first)
    other, _ = cell(x, second)
    again, _ = cell(x, first)
    np.testing.assert_array_equal(run(ops.copy, y), run(ops.copy, again))
    assert np.abs(run(ops.subtract, y, other)).max() > 1e-4
    assert [a.shape for a in after] == [a.shape for a in first]
    assert cell.output_size == 4


def test_initial_state_before_the_cell_is_built(rng):
    cell = AttentionCell(keras.layers.GRUCell(4), "general")
    states = cell.initial_state(rng.normal(size=(2, 3, 5)).astype("float32"))
    assert [tuple(s.shape) for s in states] == [(2, 4), (2, 1, 3, 4), (2, 1, 3, 5), (2, 3)]


def test_config():
    cell = cell_options()
    again = AttentionCell.from_config(cell.get_config())
    assert plain(again.get_config()) == plain(cell.get_config())
    assert again.memory_width == 5


def test_bad_input(rng):
    memory = rng.normal(size=(2, 3, 5)).astype("float32")
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    cell = AttentionCell(keras.layers.GRUCell(4, dropout=0.5), memory_width=5)
    assert cell.output_size == 4
    for output in ("context", "both"):
        fed = AttentionCell(
            keras.layers.GRUCell(4), attend="after", output=output, input_feeding=True
        )
        with pytest.raises(ValueError, match=r"must be built before the width.*built=False"):
            keras.layers.RNN(fed)
        fed.initial_state(x)
        assert keras.layers.RNN(fed)(x, initial_state=fed.initial_state(x)).shape[0] == 2
    with pytest.raises(ValueError, match=r"`initial_state` of the recurrent layer must be given"):
        cell.get_initial_state(2)
    with pytest.raises(ValueError, match=r"`memory` must have as many channels.*channels=5"):
        cell.initial_state(memory[:, :, :2])
    with pytest.raises(ValueError, match=r"`memory` must have rank 3.*\(2, 3\)"):
        cell.initial_state(memory[:, :, 0])
    with pytest.raises(ValueError, match=r"`cell` must have no dropout here"):
        cell(x[:, 0], cell.initial_state(memory), training=True)
    with pytest.raises(ValueError, match=r"`memory_width` must be an integer >= 1"):
        AttentionCell(keras.layers.GRUCell(4), memory_width=0)
    cell = AttentionCell(keras.layers.GRUCell(4))
    cell.initial_state(memory)
    with pytest.raises(ValueError, match=r"`memory_width` must be the number of.*channels=5, in"):
        cell.build((2, 3))
    with pytest.raises(ValueError, match=r"`window` must be None or.*window=3"):
        AttentionCell(keras.layers.GRUCell(4), window=3)
