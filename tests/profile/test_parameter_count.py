import keras

from kattn.profile import parameter_count


def make():
    """Two matrices of which one is shared, a bias, and what is not trained."""
    shared = keras.layers.Dense(4, use_bias=False)
    layers = [shared, shared, keras.layers.Dense(3), keras.layers.BatchNormalization()]
    return keras.Sequential(layers)


def test_it_is_what_a_built_model_has():
    model = make()
    model.build((None, 4))
    assert parameter_count(make, (None, 4)) == 4 * 4 + 4 * 3 + 3 + 2 * 3
    assert parameter_count(lambda: model) == parameter_count(make, (None, 4))


def test_nothing_is_allocated_then_or_later():
    """These would be 4 TB."""

    def make():
        return keras.layers.Dense(10**6)

    assert parameter_count(make, (None, 10**6)) == 10**12 + 10**6
    with keras.StatelessScope():
        pass  # at whose end Keras gives values to the variables that have none yet
    small = keras.layers.Dense(2)
    small.build((None, 2))
    assert small.kernel.shape == (2, 2)
