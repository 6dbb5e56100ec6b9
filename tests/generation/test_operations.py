"""Operations of Keras in a functional model: judged by what they do to the axis of steps."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn.generation import FunctionalDecoder
from kattn.generation.operations import einsum_spares_steps
from tests.compute import assert_close, result

STEPS = WIDTH = 4
ROW = np.arange(4, dtype="float32")
TABLE = np.arange(16, dtype="float32").reshape(4, 4)

ALONE = {
    "sum": lambda x: x + 2 * x - 1.0,
    "row": lambda x: x * ROW + ROW[None, None],
    "tanh": ops.tanh,
    "where": lambda x: ops.where(x > 0, x, 0.1 * x),
    "softmax": lambda x: ops.softmax(x, axis=-1),
    "mean": lambda x: x - ops.mean(x, axis=-1, keepdims=True),
    "argmax": lambda x: ops.cast(ops.argmax(x, axis=2), "float32"),
    "concatenate": lambda x: ops.concatenate([x, -x], axis=-1),
    "split": lambda x: ops.split(x, 2, axis=2)[1],
    "expand": lambda x: ops.expand_dims(x, 2),
    "item": lambda x: x[..., 1:3],
    "item by all axes": lambda x: x[:, :, 0],
    "matmul": lambda x: ops.matmul(x, TABLE.T),
    "einsum": lambda x: ops.einsum("btc,dc->btd", x, TABLE),
    "transpose": lambda x: ops.transpose(ops.stack([x, x], axis=2), (0, 1, 3, 2)),
    "swap": lambda x: ops.swapaxes(ops.stack([x, x], axis=2), -1, 2),
}
MIXED = {
    "by step": lambda x: x + TABLE,
    "by item": lambda x: x + TABLE[:, None],
    "softmax over steps": lambda x: ops.softmax(x, axis=1),
    "mean of all": lambda x: x - ops.mean(x),
    "mean over items": lambda x: x - ops.mean(x, axis=0, keepdims=True),
    "sum over steps": lambda x: ops.cumsum(x, axis=1),
    "last step": lambda x: x[:, -1],
    "some steps": lambda x: x[:, 1:],
    "some items": lambda x: x[:2, :],
    "some steps from the right": lambda x: x[..., 1:, :],
    "flip": lambda x: ops.flip(x, axis=1),
    "scores": lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))),
    "einsum of steps": lambda x: ops.einsum("btc,td->btd", x, TABLE),
    "einsum of two": lambda x: ops.einsum("btc,bsc->bts", x, x),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1)),
    "swap": lambda x: ops.swapaxes(x, 1, 2),
    "reshape": lambda x: ops.reshape(x, (-1, STEPS, 2, 2)),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "other ranks": lambda x: x + ops.mean(x, axis=-1),
}


def model_of(function):
    x = keras.Input((STEPS, WIDTH), batch_size=STEPS)
    return keras.Model(x, function(x))


@pytest.mark.parametrize("name", ALONE)
def test_known_to_act_on_each_step_alone(rng, name):
    model = model_of(ALONE[name])
    decoder = FunctionalDecoder(model)
    x = rng.normal(size=(STEPS, STEPS, WIDTH)).astype("float32")
    whole, part = result(lambda x: (model(x), decoder.decode(x[:, 2:4], ())[0]), x)
    assert_close(part, whole[:, 2:4])


@pytest.mark.parametrize("name", MIXED)
def test_not_known(name):
    model = model_of(MIXED[name])
    with pytest.raises(ValueError, match=r"be known to act on each step alone.*received: layer="):
        FunctionalDecoder(model)


class Reverse(keras.Operation):
    """Has the name of an operation that Keras does not have, and then of one that it has."""

    def call(self, x):
        return ops.flip(x, axis=1)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_operations_that_are_not_keras():
    named_as_one = type("Tanh", (Reverse,), {})
    for kind in (Reverse, named_as_one):
        with pytest.raises(ValueError, match="be known to act on each step alone"):
            FunctionalDecoder(model_of(kind()))


@pytest.mark.parametrize(
    ("subscripts", "rank", "expected"),
    [
        ("btc,cd->btd", 3, True),
        ("btc, cd -> btd", 3, True),
        ("...c,cd->...d", 3, True),
        ("...tc,cd->...td", 3, False),
        ("...c,cd->...d", 2, False),
        ("btc,cd->tbd", 3, False),
        ("btc,td->btd", 3, False),
        ("btc,bd->btd", 3, False),
        ("btc,cd->bd", 3, False),
        ("btc,cd", 3, False),
    ],
)
def test_einsum(subscripts, rank, expected):
    assert einsum_spares_steps(subscripts, rank) is expected
