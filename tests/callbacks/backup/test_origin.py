import keras

from kattn.callbacks.backup import origin


def test_labels_are_without_counters():
    def make():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        return origin.origin(model, [], None, 5)

    one, other = make(), make()
    assert origin.differences(one, other) == ""
    assert one["model_variables"][0].endswith("/kernel [2, 3] float32")
    assert origin.differences(one | {"steps": 4}, other) == "steps=4 in the backup, 5 here"
