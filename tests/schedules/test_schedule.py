"""What all schedules have in common: steps, and examples that run."""

import dataclasses
import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest
from keras import ops

import kattn
from kattn import schedules
from kattn.schedules import Joined, Linear, OneCycle, Schedule, Step, WarmUp
from tests.compute import run
from tests.schedule_checks import Case, check_schedule

SCHEDULE = Linear(0.75, 0.25, 4)


@keras.saving.register_keras_serializable("kattn.tests")
@dataclasses.dataclass(frozen=True)
class Halving(Schedule):
    """One that others may write."""

    start: float

    def value(self, t, xp):
        return self.start * 0.5**t


def test_a_schedule_of_others():
    check_schedule(Case(Halving(0.5), lambda t: 0.5 * 0.5**t, {0: 0.5, 2: 0.125, 5: 0.015625}))


@pytest.mark.parametrize(
    "step", [1, 1.0, np.int64(1), np.uint8(1), np.float32(1), np.float16(1), np.array(1)]
)
def test_numbers_give_floats_and_no_tensors(step, monkeypatch):
    for name in ("convert_to_tensor", "cast", "where", "maximum"):
        monkeypatch.setattr(ops, name, None)
    found = SCHEDULE(step)
    assert type(found) is float
    assert found == 0.625


def test_parts_of_a_step():
    assert SCHEDULE(2.5) == 0.4375
    found = run(SCHEDULE, ops.convert_to_tensor([2.5, 0.5]))
    np.testing.assert_array_equal(found, np.float32([0.4375, 0.6875]))


def test_no_step():
    assert SCHEDULE([]).shape == (0,)


def test_variable():
    found = run(SCHEDULE, keras.Variable(3, dtype="int32", trainable=False))
    assert found.dtype == np.float32
    assert found == 0.375


@pytest.mark.parametrize(
    "step",
    [
        True,
        np.True_,
        np.array([True]),
        -1,
        -0.5,
        [1, -1],
        np.array([-3]),
        np.nan,
        np.inf,
        [1j],
        ["1"],
    ],
    ids=repr,
)
def test_bad_steps(step):
    with pytest.raises(
        ValueError, match="A step must be a finite number >= 0 and no bool; received: step"
    ):
        SCHEDULE(step)


def test_schedules_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEDULE.start = 1.0
    assert Linear(0.75, 0.25, 5) != SCHEDULE == Linear(np.float32(0.75), 0.25, np.int64(4))
    assert repr(SCHEDULE) == "Linear(start=0.75, end=0.25, steps=4)"


def test_config_is_the_same_on_every_backend():
    schedule = WarmUp(Step(np.float32(0.5), [3, 5]), 4, start=0.25)
    assert keras.optimizers.schedules.serialize(schedule) == {
        "module": "kattn.schedules.composed",
        "class_name": "WarmUp",
        "registered_name": "kattn>WarmUp",
        "config": {
            "schedule": {
                "module": "kattn.schedules.decays",
                "class_name": "Step",
                "registered_name": "kattn>Step",
                "config": {"start": 0.5, "boundaries": [3, 5], "factor": 0.1},
            },
            "steps": 4,
            "start": 0.25,
        },
    }


def test_a_saved_model_keeps_its_schedule(tmp_path):
    schedule = Joined([WarmUp(SCHEDULE, 2), OneCycle(0.5, 10)], [7])
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(schedule), "mse")
    model.fit(np.ones((3, 1)), np.ones(3), batch_size=1, verbose=0)
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert optimizer.get_config()["learning_rate"] == keras.saving.serialize_keras_object(schedule)
    assert run(ops.convert_to_tensor, optimizer.learning_rate) == np.float32(schedule(3))


def test_keras_counts_accumulated_batches_as_steps():
    """Batches 0 and 1 make an update at the rate of step 1, batches 2 and 3 at that of step 3."""
    optimizer = keras.optimizers.SGD(SCHEDULE, gradient_accumulation_steps=2)
    variable = keras.Variable(np.zeros(1, "float32"))
    optimizer.build([variable])
    found = []
    for _ in range(4):
        optimizer.apply([ops.ones(1)], [variable])
        found.append(run(ops.convert_to_tensor, variable).item())
    assert found == [0, -SCHEDULE(1), -SCHEDULE(1), -SCHEDULE(1) - SCHEDULE(3)]
    assert run(ops.convert_to_tensor, optimizer.iterations) == 2


MODULES = [module.name for module in pkgutil.iter_modules(schedules.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"kattn.schedules.{name}")
    names = {"kattn": kattn, "keras": keras, "dataclasses": dataclasses}
    assert doctest.testmod(module, extraglobs=names).failed == 0


def test_every_schedule_has_an_example_that_runs():
    found = {name: value for name, value in vars(schedules).items() if isinstance(value, type)}
    assert len(found) == 19
    assert all(">>> " in value.__doc__ for value in found.values())
