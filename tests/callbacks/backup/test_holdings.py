import keras
import numpy as np

from kattn.callbacks.backup import holdings, training_state


class Two(keras.Model):
    """A model with optimizers and a variable of its own."""

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.GRU(3, stateful=True)

    def compile(self):
        super().compile()
        self.d_optimizer = keras.optimizers.Adam(0.1)
        self.more = {"g": [keras.optimizers.SGD(0.1)]}

    def call(self, x):
        return self.inner(x)


def test_optimizers():
    model = Two()
    assert holdings.optimizers(model) == []
    model.compile()
    expected = [model.optimizer, model.d_optimizer, model.more["g"][0]]
    found = holdings.optimizers(model)
    assert [id(each) for each in found] == [id(each) for each in expected]


def test_an_optimizer_inside_another_does_not_count():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), "mse")
    assert [type(each).__name__ for each in holdings.optimizers(model)] == ["LossScaleOptimizer"]


def test_variables_that_the_lists_of_keras_leave_out():
    model = Two()
    model(np.zeros((2, 4, 5), "float32"))
    states = model.inner.states
    assert not {id(v) for v in states} & {id(v) for v in model.variables}
    found = [id(v) for v in holdings.variables(model)]
    assert found == [id(v) for v in [*model.variables, *states]]


def test_weights_of_optimizers_have_places_or_none():
    """Those that a model does not hold cannot be found again, and are no fault."""
    model = Two()
    model.compile()
    model(np.zeros((2, 4, 5), "float32"))
    weights = model.trainable_variables
    model.d_optimizer.build(weights[::-1])
    model.more["g"][0].build([keras.Variable(1.0)])
    model.optimizer = None
    places = training_state.trained_weights(model)
    assert all(model.variables[i] is w for i, w in zip(places[0], weights[::-1], strict=True))
    assert places[1] is None
    other = Two()
    other.compile()
    other(np.zeros((2, 4, 5), "float32"))
    other.optimizer = None
    training_state.build_optimizers(other, places)
    built = other.d_optimizer._trainable_variables
    assert list(map(id, built)) == list(map(id, other.trainable_variables[::-1]))
    assert not other.more["g"][0].built


def test_nothing_more_in_a_plain_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((2, 4)), np.zeros((2, 3)), verbose=0)
    assert list(map(id, holdings.variables(model))) == list(map(id, model.variables))
    assert [id(each) for each in holdings.optimizers(model)] == [id(model.optimizer)]
