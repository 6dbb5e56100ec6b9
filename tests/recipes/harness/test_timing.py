"""Times in turns."""

import keras
import numpy as np

from recipes import harness


def test_measure_in_turns():
    calls = []
    values = {"a": iter([100.0, 1.0, 9.0, 2.0]), "b": iter([100.0, 4.0, 6.0, 5.0])}

    def case(name):
        calls.append(name)
        return next(values[name])

    cases = {name: lambda name=name: case(name) for name in values}
    assert harness.measure_in_turns(cases, turns=3, warm_up=1) == {"a": 2.0, "b": 5.0}
    assert calls == ["a", "b", "a", "b", "a", "b", "a", "b"]


def test_measure_steps():
    models = {}
    for name, width in (("small", 2), ("large", 3)):
        models[name] = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])
        models[name].compile("sgd", "mse")
    before = models["small"].get_weights()[0]
    batch = (np.ones((5, 4), "float32"), np.ones((5, 1), "float32"))
    times = harness.measure_steps(models, dict.fromkeys(models, batch), steps=2)
    assert list(times) == ["small", "large"]
    assert all(0 < seconds < 60 for seconds in times.values())
    assert not np.array_equal(before, models["small"].get_weights()[0])  # they were real steps
