import keras
import numpy as np

from kattn.callbacks.update.optimizer_hook import OptimizerHook
from kattn.callbacks.update.recorder import Recorder, rows_needed
from tests.training import weight_model


def make(size):
    recorder = Recorder(("a", "b"), size)
    recorder.build(OptimizerHook(keras.optimizers.SGD()), "test")
    return recorder


def write(recorder, numbers):
    for number in numbers:
        recorder.write({"a": float(number), "b": number % 2 == 0})


def test_each_row_is_read_once():
    recorder = make(5)
    write(recorder, range(3))
    np.testing.assert_array_equal(recorder.read()["a"], [0, 1, 2])
    assert recorder.read()["a"].size == 0
    write(recorder, range(3, 8))
    rows = recorder.read()
    np.testing.assert_array_equal(rows["a"], [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(rows["b"], [0, 1, 0, 1, 0])


def test_of_more_rows_than_it_has_the_last_are_left():
    recorder = make(4)
    write(recorder, range(7))
    np.testing.assert_array_equal(recorder.read()["a"], [3, 4, 5, 6])


def test_start_leaves_out_what_was_before():
    recorder = make(4)
    write(recorder, range(3))
    recorder.start()
    write(recorder, [9])
    np.testing.assert_array_equal(recorder.read()["a"], [9])


def test_an_execution_fits():
    assert rows_needed(weight_model("sgd")) == 512
    model = weight_model("sgd")
    model.steps_per_execution = 700
    assert rows_needed(model) == 1400
