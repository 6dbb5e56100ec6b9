"""Small trainings whose updates are known: what the tests of callbacks are made on."""

import random

import keras
import numpy as np


class Weight(keras.layers.Layer):
    """One number, whatever the input. With `loss=falling`, its gradient is -1."""

    def build(self, input_shape):
        self.weight = self.add_weight(shape=(), initializer="zeros", name="weight")

    def call(self, x):
        return 0.0 * x + self.weight


def falling(y_true, y_pred):
    """Loss = -w: with SGD each update adds the learning rate to w."""
    return -keras.ops.mean(y_pred)


def weight_model(optimizer, **options):
    """A model of one weight, 0, which each update of SGD raises by the learning rate."""
    model = keras.Sequential([keras.Input((1,)), Weight(name="only")])
    model.compile(optimizer, loss=falling, **options)
    return model


class Watch(keras.callbacks.Callback):
    """The values of the weights after each batch: a list for each weight."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_begin(self, logs=None):
        self._note()

    def on_train_batch_end(self, batch, logs=None):
        self._note()

    def _note(self):
        self.weights.append([np.array(w, np.float64) for w in self.model.get_weights()])


def train(model, steps, *callbacks, epochs=1, **options):
    """Fit on `steps` batches of one item; returns the model's history."""
    x = np.zeros((steps, 1), "float32")
    return model.fit(
        x, x, batch_size=1, epochs=epochs, verbose=0, callbacks=list(callbacks), **options
    ).history


def changes(watch):
    """Of the single weight by each batch."""
    return np.diff([float(weights[0]) for weights in watch.weights])


@keras.saving.register_keras_serializable("tests")
class Linear(keras.layers.Layer):
    """X w + b with weights of given values, so that a simulation knows them."""

    def __init__(self, kernel, bias=None, **kwargs):
        super().__init__(**kwargs)
        self._values = kernel, bias

    def build(self, input_shape):
        kernel, bias = self._values
        self.kernel = self.add_weight(
            shape=np.shape(kernel), initializer=lambda shape, dtype: kernel, name="kernel"
        )
        if bias is not None:
            self.bias = self.add_weight(
                shape=np.shape(bias), initializer=lambda shape, dtype: bias, name="bias"
            )

    def call(self, x):
        y = keras.ops.matmul(x, self.kernel)
        return y if self._values[1] is None else y + self.bias

    def get_config(self):
        kernel, bias = self._values
        values = {"kernel": np.array(kernel).tolist()}
        return super().get_config() | values | ({} if bias is None else {"bias": list(bias)})


def draws():
    """A number of each global generator that Keras seeds for the backend at hand."""
    numbers = random.random(), np.random.rand()  # noqa: NPY002
    if keras.backend.backend() == "torch":
        import torch

        return *numbers, float(torch.rand(()))
    return numbers
