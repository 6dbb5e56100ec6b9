import keras
import numpy as np
import pytest

from kattn.callbacks.update import Rule, Update


@pytest.mark.parametrize("bad", [0, 1, None])
def test_gradients_are_finite_if_all_are(bad):
    update = Update(None, [1, 2], [], None)
    gradients = [np.ones(3, "float32"), np.ones((2, 2), "float32")]
    if bad is not None:
        gradients[bad].flat[-1] = np.inf
    update.gradients = [keras.ops.convert_to_tensor(g) for g in gradients]
    assert bool(update.is_finite()) == (bad is None)


def test_numbers_are_those_of_rules_and_else_of_the_optimizer():
    update = Update(keras.optimizers.SGD(0.5, momentum=0.75), [], [], lambda: 0.25)
    assert float(update.number("learning_rate")) == 0.25
    assert float(update.number("momentum")) == 0.75
    assert float(update.number("clip_threshold")) == -1.0
    update.numbers = {"learning_rate": keras.ops.convert_to_tensor(2.0), "momentum": 0.0}
    assert float(update.number("learning_rate")) == 2.0
    assert float(update.number("momentum")) == 0.0


class Halves(Rule):
    def __init__(self, factor):
        self.factor = factor

    def multiplier(self, variable):
        return self.factor if variable == "second" else None


def test_multipliers_of_rules_are_multiplied_and_weights_at_rest_have_no_norm():
    gradients = [np.full(4, 3.0, "float32"), np.full(9, 2.0, "float32")]

    def update(*factors):
        made = Update(None, ["first", "second"], [Halves(factor) for factor in factors], None)
        made.gradients = [keras.ops.convert_to_tensor(g) for g in gradients]
        return made

    half = update(0.5, 0.25)
    assert half.factors[0] is None
    assert float(half.factors[1]) == 0.125
    np.testing.assert_allclose(keras.ops.convert_to_numpy(half.norms()), [6.0, 6.0], rtol=1e-6)
    rests = keras.ops.convert_to_numpy(update(0.5, 0.0).norms())
    np.testing.assert_allclose(rests, [6.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("conditions", [[True, True], [True, False], [False, True]])
def test_all_conditions_are_required(conditions):
    update = Update(None, [], [], None)
    assert update.is_good is None
    for condition in conditions:
        update.require(keras.ops.convert_to_tensor(condition))
    assert bool(update.is_good) == all(conditions)
