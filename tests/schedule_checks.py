"""What every schedule must do, given its oracle: a function of one step, in Python floats.

CASES = {"linear": Case(Linear(0.5, 0.1, 8), lambda t: ..., {0: 0.5, 4: 0.3, 8: 0.1})}

@pytest.mark.parametrize("name", CASES)
def test_schedule(name):
    check_schedule(CASES[name])

def test_compiled():
    check_compiled(CASES)
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tests.compute import compiled, run

SMALL = tuple(range(60))
MILLION = 10**6
LARGE = tuple(MILLION * k // 20 + d for k in range(1, 25) for d in (-1, 0, 1))
COUNT = 80  # steps of a tensor: always as many, as JAX compiles every function for every shape
FLOAT32 = 2.0**-24  # half of the distance of two numbers near 1


class Case(NamedTuple):
    """A schedule, its oracle and steps to compare them at.

    Args:
        schedule: What is tested.
        oracle: `oracle(t)`, from the paper.
        known: Values known beforehand by their steps, where the schedule must be exact.
        steps: Further steps.
        precision: Of float64, relative to the largest value.
    """

    schedule: Any
    oracle: Callable
    known: dict
    steps: tuple = SMALL
    precision: float = 1e-14

    def all_steps(self):
        steps = [*self.steps, *self.known]
        assert len(steps) <= COUNT
        return np.resize(steps, COUNT)

    def expected(self, steps):
        """float64, one for each step."""
        return np.array([self.oracle(float(t)) for t in steps], np.float64)


def check_schedule(case):
    """All that can be checked without a compiler."""
    check_numbers(case)
    check_tensors(case)
    check_config(case)
    check_optimizer(case)


def check_numbers(case):
    """Numbers give floats, arrays arrays, in float64."""
    steps = case.all_steps()
    found = [case.schedule(int(t)) for t in steps]
    assert {type(x) for x in found} == {float}
    check_near(found, case.expected(steps), case.precision)
    assert {t: case.schedule(t) for t in case.known} == case.known
    for kind in (float, np.int32, np.float32):
        assert [case.schedule(kind(t)) for t in steps] == found
    for array in (steps.tolist(), steps, np.array([steps], np.float32)):
        values = case.schedule(array)
        assert type(values) is np.ndarray
        assert values.dtype == np.float64
        assert values.shape == np.shape(array)
        # NumPy's functions of arrays round otherwise than those of numbers, in the last place.
        check_near(np.ravel(values), found, 4e-16)


def check_tensors(case):
    """Tensors give float32 tensors of their shape, whatever their type."""
    steps = case.all_steps()
    for dtype in ("int32", "float32"):
        found = run(case.schedule, ops.convert_to_tensor(steps[None], dtype))
        assert found.shape == (1, COUNT)
        check_float32(case, steps, found[0])
        scalar = run(case.schedule, ops.convert_to_tensor(steps[-1], dtype))
        assert scalar.shape == ()
        assert scalar.dtype == np.float32
        check_near([scalar], found[0][-1:], 8 * FLOAT32)
    traced = case.schedule(keras.KerasTensor((2, 3), "int32"))
    assert (traced.shape, traced.dtype) == ((2, 3), "float32")


def check_compiled(cases):
    """Schedules give the same when compiled."""
    if keras.backend.backend() == "torch":
        check_traced_by_torch(cases)
        return
    steps = np.unique([t for case in cases.values() for t in case.all_steps()])
    function = compiled(lambda t: [case.schedule(t) for case in cases.values()])
    found = run(function, ops.convert_to_tensor(steps, "int32"))
    for (name, case), values in zip(cases.items(), found, strict=True):
        own = case.all_steps()
        check_float32(case, own, values[np.searchsorted(steps, own)], name)


def check_traced_by_torch(cases):
    """TorchDynamo compiles one schedule of each class, the last: in one graph, unless of a table.

    It takes half a second for each, and does not change how values are computed.
    """
    import torch

    for case in {type(case.schedule): case for case in cases.values()}.values():
        torch._dynamo.reset()  # it compiles no function of the same code more than eight times
        has_table = getattr(case.schedule, "growth", 1) != 1
        function = torch.compile(
            lambda t, case=case: case.schedule(t), backend="aot_eager", fullgraph=not has_table
        )
        steps = case.all_steps()
        check_float32(case, steps, run(function, ops.convert_to_tensor(steps, "int32")))


def check_config(case):
    """The config is JSON, and makes an equal schedule."""
    schedule = case.schedule
    config = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(json.loads(json.dumps(config)))
    assert type(again) is type(schedule)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert keras.optimizers.schedules.serialize(again) == config
    assert again(case.steps[-1]) == schedule(case.steps[-1])


def check_optimizer(case):
    """The learning rate of two updates, of an optimizer made from a config."""
    config = json.dumps(keras.optimizers.serialize(keras.optimizers.SGD(case.schedule)))
    optimizer = keras.optimizers.deserialize(json.loads(config))
    variable = keras.Variable(np.zeros(1, "float32"))
    optimizer.build([variable])
    expected = case.expected((0, 1, 2))
    for count in (1, 2):
        optimizer.apply([ops.ones(1)], [variable])
        moved = -run(ops.convert_to_tensor, variable)
        check_near(moved, expected[:count].sum(keepdims=True), 8 * FLOAT32)
    check_near([run(ops.convert_to_tensor, optimizer.learning_rate)], expected[2:], 8 * FLOAT32)


def check_float32(case, steps, found, name=""):
    """float32, near the oracle but for its rounding of inputs and of some ten operations."""
    assert found.dtype == np.float32, name
    check_near(found, case.expected(steps), 8 * FLOAT32, name)
    for t, value in case.known.items():
        np.testing.assert_array_equal(found[steps == t], np.float32(value), f"{name} at {t}")


def check_near(found, expected, tolerance, name=""):
    """Equal within `tolerance`, relative to each value ten times that, to the largest once."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    assert np.isfinite(found).all(), name
    allowed = tolerance * (np.abs(expected).max() + 10 * np.abs(expected))
    wrong = np.flatnonzero(np.abs(found - expected) > allowed)
    assert not wrong.size, f"{name} at {wrong[:9]}: {found[wrong[:9]]}, not {expected[wrong[:9]]}"
