"""Epoch e of a fit has the order of (seed, e), whatever came before."""

import math

import keras
import numpy as np
import pytest

from kattn.callbacks.exact_resume import ExactResume
from kattn.data import EpochShuffled

EXAMPLES, BATCH = 22, 4


def oracle(seed, epoch):
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(EXAMPLES)


class Sum(keras.layers.Layer):
    """Writes down which examples it is given, in a variable, so that any backend can."""

    def build(self, shape):
        self.seen = self.add_weight(
            (400,), initializer="zeros", dtype="int32", trainable=False, name="seen"
        )
        self.count = self.add_weight((), initializer="zeros", dtype="int32", trainable=False)
        self.scale = self.add_weight((), initializer="ones")

    def call(self, x, training=False):
        if training:
            ops = keras.ops
            places = ops.arange(400, dtype="int32") - self.count
            size = ops.shape(x)[0]
            rows = ops.cast(ops.take(x[:, 0], ops.clip(places, 0, size - 1), axis=0), "int32")
            is_new = ops.logical_and(places >= 0, places < size)
            self.seen.assign(ops.where(is_new, rows, ops.convert_to_tensor(self.seen)))
            self.count.assign(self.count + ops.cast(size, "int32"))
        return x * self.scale


class StopError(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise StopError


def make_model():
    model = keras.Sequential([keras.Input((1,)), Sum(name="sum")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def make_data(**options):
    x = np.arange(EXAMPLES, dtype="float32")[:, None]
    return EpochShuffled((x, 2 * x), batch_size=BATCH, **options)


def seen(model):
    """The examples that a model has been trained on, by order."""
    layer = model.get_layer("sum")
    return keras.ops.convert_to_numpy(layer.seen)[: int(layer.count)].tolist()


@pytest.mark.parametrize("is_built", [False, True])
def test_epochs_of_fits(is_built):
    model, data = make_model(), make_data(seed=3)
    if is_built:  # else Keras looks at the first batch, on JAX and torch
        model.evaluate(np.zeros((1, 1)), np.zeros((1, 1)), verbose=0)
    model.fit(data, shuffle=False, epochs=3, verbose=0)
    model.fit(data, shuffle=False, epochs=2, verbose=0)
    assert seen(model) == np.concatenate([oracle(3, e) for e in range(5)]).tolist()
    assert data.epoch == 5


def test_an_unfinished_pass_does_not_count():
    model, data = make_model(), make_data(seed=3)
    with pytest.raises(StopError):
        model.fit(data, shuffle=False, epochs=3, verbose=0, callbacks=[StopAt(1, 2)])
    assert data.epoch == 1
    model.fit(data, shuffle=False, verbose=0)
    assert seen(model)[-EXAMPLES:] == oracle(3, 1).tolist()


def test_resumed_in_another_process(tmp_path):
    found = []
    for stops in ([StopAt(1, 5)], [StopAt(1, 5)], []):
        model, data = make_model(), make_data(seed=3)
        resume = ExactResume(tmp_path, every=2, data=data)
        try:
            model.fit(data, shuffle=False, epochs=3, verbose=0, callbacks=[resume, *stops])
        except StopError:
            found.append(resume.resumed_from)
    assert [*found, resume.resumed_from] == [None, (1, 4), (1, 4)]
    assert seen(model) == np.concatenate([oracle(3, e) for e in range(3)]).tolist()


def test_batches():
    data = make_data(seed=5)
    data.set_epoch(7)
    batches = [data[i] for i in range(len(data))]
    assert [len(x) for x, _ in batches] == [4, 4, 4, 4, 4, 2]
    rows = np.concatenate([x for x, _ in batches])[:, 0]
    np.testing.assert_array_equal(rows, oracle(5, 7))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches])[:, 0], 2 * rows)
    np.testing.assert_array_equal(data.order(7), oracle(5, 7))
    assert len(list(data)) == len(data)
    with pytest.raises(IndexError, match=r"`index` must be in \[0, 6\); received: index=6"):
        data[6]


def test_seeds_and_epochs_differ():
    orders = [tuple(make_data(seed=s).order(e)) for s in range(5) for e in range(5)]
    assert len(set(orders)) == 25
    assert all(sorted(order) == list(range(EXAMPLES)) for order in orders)


def test_drops_the_remainder():
    data = make_data(drop_remainder=True)
    assert len(data) == 5
    rows = np.concatenate([x for x, _ in data])[:, 0]
    np.testing.assert_array_equal(rows, oracle(0, 0)[:20])


def test_any_structure():
    x = {"a": np.arange(6), "b": [np.arange(6) + 10, np.arange(6) + 20]}
    data = EpochShuffled((x, np.arange(6) + 30, np.arange(6) + 40), batch_size=4)
    inputs, targets, weights = data[1]
    order = data.order(0)[4:]
    assert order.tolist() != [4, 5]
    found = [inputs["a"], *inputs["b"], targets, weights]
    for i, array in enumerate(found):
        np.testing.assert_array_equal(array, order + 10 * i)


def test_config_is_what_the_order_depends_on():
    config = make_data(seed=4, drop_remainder=True).get_config()
    assert config == {"examples": 22, "batch_size": 4, "seed": 4, "drop_remainder": True}


def test_global_generators_are_left_alone():
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    list(make_data())
    assert np.random.random() == expected  # noqa: NPY002


def test_shuffling_by_keras_is_refused():
    # TensorFlow reads in a thread, and makes an error of its own of this one.
    with pytest.raises(Exception, match="call fit with shuffle=False; received: index="):
        make_model().fit(make_data(), epochs=2, verbose=0)


def test_two_readers_in_order():
    """As on TensorFlow, whose iterator of the epoch before may still be read."""
    data = make_data()
    data.on_epoch_begin()
    for index in [0, 1, 0, 2, 1, 2, 3, 3, 4, 5, 4, 0, 5, 1]:
        data[index]
    with pytest.raises(ValueError, match=r"shuffle=False; received: index=4, expected=\[2, 6\]"):
        data[4]
    data.on_epoch_end()
    data[4]  # outside of an epoch anything goes


def test_transform_draws_from_seed_epoch_and_place():
    """Not from what was read before, so that it can be taken up anywhere."""

    def noisy(batch, rng):
        x, y = batch
        return x + rng.normal(size=x.shape), y

    x, y = np.zeros((EXAMPLES, 3)), np.arange(EXAMPLES)
    data, other = (
        EpochShuffled((x, y), batch_size=BATCH, seed=5, transform=noisy) for _ in range(2)
    )
    data.set_epoch(2)
    read = [data[i] for i in range(3)]
    other.set_epoch(2)
    np.testing.assert_array_equal(other[2][0], read[2][0])
    np.testing.assert_array_equal(other[2][1], oracle(5, 2)[2 * BATCH : 3 * BATCH])
    np.testing.assert_array_equal(
        read[1][0], np.random.default_rng([5, 2, 1]).normal(size=(BATCH, 3))
    )
    other.set_epoch(3)
    assert not np.array_equal(other[2][0], read[2][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": 3}, "`transform` must be a function .*; received: transform=3"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1; received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer >= 1; received: batch_size=2.0"),
        ({"seed": -1}, "`seed` must be an integer >= 0; received: seed=-1"),
        ({"data": (np.zeros(3), np.zeros(4))}, r"one length; received: shapes=\[\(3,\), \(4,\)\]"),
        ({"data": 3.0}, r"one length; received: shapes=\[\(\)\]"),
        ({"data": ()}, r"one length; received: shapes=\[\]"),
        ({"data": np.zeros(0)}, "fill at least one batch; received: examples=0, batch_size=2"),
        (
            {"batch_size": 4, "drop_remainder": True},
            "fill at least one batch; received: examples=3, batch_size=4, drop_remainder=True",
        ),
    ],
)
def test_refused_arguments(options, message):
    options = {"data": np.zeros(3), "batch_size": 2} | options
    with pytest.raises(ValueError, match=message):
        EpochShuffled(**options)


def test_integers_of_numpy_are_taken():
    data = EpochShuffled(np.zeros(6), batch_size=np.int64(4), seed=np.uint8(3))
    data.set_epoch(np.int32(2))
    assert [type(x) for x in (data.batch_size, data.seed, data.epoch)] == [int, int, int]


@pytest.mark.parametrize("epoch", [-1, 1.0, math.nan])
def test_refused_epochs(epoch):
    with pytest.raises(ValueError, match="`epoch` must be an integer >= 0; received: epoch="):
        make_data().set_epoch(epoch)
