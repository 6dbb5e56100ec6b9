import keras

from kattn.callbacks.update.attributes import replaced_attributes


def test_numbers_are_replaced_in_the_block_alone():
    optimizer = keras.optimizers.SGD(0.5, momentum=0.75, weight_decay=0.25)
    zero = keras.ops.convert_to_tensor(0.0)
    numbers = {
        "momentum": zero,
        "weight_decay": zero,
        "learning_rate": zero,
        "clip_threshold": zero,
    }
    with replaced_attributes(optimizer, numbers):
        assert optimizer.momentum != 0  # or Keras would leave out the velocity
        assert optimizer.momentum > 0
        assert float(optimizer.weight_decay) == 0.0
        assert float(optimizer.learning_rate) == 0.5
        assert not hasattr(optimizer, "clip_threshold")
    assert (optimizer.momentum, optimizer.weight_decay) == (0.75, 0.25)
