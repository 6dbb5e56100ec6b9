"""When a model forgets the batches before."""

import keras
import numpy as np
import pytest

from kattn import callbacks, layers, models, text
from tests.compute import assert_close
from tests.models.test_segment_memory import TOKENS, make, memory_of, without_memory


def fitted(validation=None, memory=callbacks.ResetMemory):
    keras.utils.set_random_seed(1)
    model = make()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = text.streams(np.append(TOKENS, 3), 4, 2)
    given = {"validation_data": validation, "batch_size": 2, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, epochs=2, callbacks=[memory()], **given)
    return model, history.history


def test_fit_begins_each_epoch_and_validation_without_a_memory():
    validation = TOKENS[:, :4], TOKENS[:, 1:5]
    plain, _ = fitted()
    model, history = fitted(validation)
    for found, wanted in zip(memory_of(model), memory_of(plain), strict=True):
        assert_close(found, wanted)
    assert memory_of(model)[-1].all()  # three segments of four steps
    unlike, _ = fitted(memory=keras.callbacks.Callback)
    assert np.abs(memory_of(unlike)[1] - memory_of(plain)[1]).max() > 1e-4
    model.reset_memory()
    loss = model.evaluate(*validation, batch_size=2, verbose=0)
    assert_close(history["val_loss"][-1], loss)


def test_a_model_that_is_built_by_its_first_batch():
    """Which it forgets."""
    model = models.TransformerLM(11, 1, 2, 8, position=layers.RotaryEmbedding(), memory_length=3)
    model.predict(TOKENS, batch_size=2, callbacks=[callbacks.ResetMemory()], verbose=0)
    assert len(memory_of(model)) == 2
    assert not any(np.any(part) for part in memory_of(model))


def test_a_model_without_a_memory():
    model = without_memory(make())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"The model must have a memory"):
        model.fit(TOKENS, TOKENS, callbacks=[callbacks.ResetMemory()], verbose=0)
