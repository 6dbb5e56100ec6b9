import keras

from kattn.callbacks.update.weight_groups import depths


def test_layers_of_models_in_a_model_count_one_by_one():
    dense = {name: keras.layers.Dense(2, name=name) for name in ("first", "second", "head")}
    frozen = keras.layers.Dense(2, name="frozen", trainable=False)
    inner = keras.Sequential([keras.Input((2,)), dense["first"], frozen, dense["second"]])
    model = keras.Sequential([keras.Input((2,)), inner, keras.layers.ReLU(), dense["head"]])
    found = depths(model)
    assert len(found) == 6
    for name, depth in {"first": 2, "second": 1, "head": 0}.items():
        assert {found[id(weight)] for weight in dense[name].weights} == {depth}
