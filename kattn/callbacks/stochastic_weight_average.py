"""Stochastic weight averaging (Izmailov et al., 2018)."""

import inspect
import itertools
import math

import keras
import numpy as np
from keras import ops

from kattn.callbacks import training_state


class StochasticWeightAverage(keras.callbacks.Callback):
    """w_swa = the mean of the weights at the ends of epochs, which the model has after `fit`.

    Weights are averaged at the ends of epochs `start`, `start + every` and so on. During training
    nothing changes: validation and checkpoints see the weights as trained. At the end the trainable
    weights become the mean, and the statistics of batch normalization, which belong to other
    weights, are estimated anew: those of each layer become the mean over batches of the batch's
    mean and variance, in training mode. Nothing else changes by that, seeds of dropout included. A
    normalization that is called several times for a batch counts its last call. If training is
    stopped before `start`, the model keeps its weights, and `count` is 0.

    The paper trains on with a constant or cyclical learning rate from `start` on: see
    `LearningRate`.

    Args:
        start: The first epoch that counts: a whole number, from 0, or a fraction in (0, 1) of all
            epochs, rounded down.
        every: Epochs from one to the next, 1 or more.
        batch_norm_data: What to estimate the statistics with: an array, or anything that gives
            batches as `fit` takes them, x or (x, y) (`tf.data`, `PyDataset`, `DataLoader`, a list,
            a generator). Needed if the model has batch normalization that trains.
        batch_size: Items in a batch of an array.
        batch_norm_steps: How many batches to use; None: all.

    Raises:
        ValueError: If an argument is out of its range. When training begins: if the model has batch
            normalization that trains and there is no `batch_norm_data`, if one is a batch
            renormalization, or if training ends before `start`. When it ends, if `batch_norm_data`
            gives no batch: the weights are averaged then.

    Reference:
        Izmailov et al. 2018, algorithm 1, https://arxiv.org/abs/1803.05407. Variances are averaged
        as `torch.optim.swa_utils.update_bn` does it, though Keras's are not corrected for bias.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
        ... )
        >>> model.compile("sgd", "mse")
        >>> x, y = np.random.normal(size=(64, 8)), np.random.normal(size=(64, 4))
        >>> average = kattn.callbacks.StochasticWeightAverage(0.5, batch_norm_data=x)
        >>> history = model.fit(x, y, epochs=4, callbacks=[average], verbose=0)
        >>> average.count
        2
    """

    def __init__(
        self, start, *, every=1, batch_norm_data=None, batch_size=32, batch_norm_steps=None
    ):
        super().__init__()
        is_epoch = _is_whole(start) and start >= 0
        if not is_epoch and not (isinstance(start, float) and 0 < start < 1):
            raise ValueError(
                f"start must be an epoch, 0 or more, or a fraction in (0, 1): start={start!r}"
            )
        if not _is_whole(every) or every < 1:
            raise ValueError(f"every must be a whole number of epochs, 1 or more: every={every!r}")
        if not _is_whole(batch_size) or batch_size < 1:
            raise ValueError(
                f"batch_size must be a whole number of items, 1 or more: batch_size={batch_size!r}"
            )
        if batch_norm_steps is not None and (
            not _is_whole(batch_norm_steps) or batch_norm_steps < 1
        ):
            raise ValueError(
                "batch_norm_steps must be a whole number of batches, 1 or more, or None: "
                f"batch_norm_steps={batch_norm_steps!r}"
            )
        if isinstance(batch_norm_data, tuple | dict):
            raise ValueError(
                "batch_norm_data must be an array or give batches, one by one: "
                f"batch_norm_data is a {type(batch_norm_data).__name__}"
            )
        self.start, self.every = start, every
        self.batch_norm_data, self.batch_size = batch_norm_data, batch_size
        self.batch_norm_steps = batch_norm_steps
        self.count = 0  # of the weights in the mean
        self._mean: list[np.ndarray] = []

    def on_train_begin(self, logs=None):
        self.count, self._mean = 0, []
        epochs = self.params["epochs"]
        self._first = self.start
        if isinstance(self.start, float):
            self._first = math.floor(self.start * epochs + 1e-9)  # 0.58 * 50 is less than 29
        if self._first >= epochs:
            raise ValueError(
                f"start must come before the end of training: start={self.start}, epochs={epochs}"
            )
        found = _normalizations(self.model)
        renormalized = [layer.name for layer in found if layer.renorm]
        if renormalized:
            raise ValueError(
                "Statistics of batch renormalization cannot be estimated anew: "
                f"layers={renormalized}, renorm=True"
            )
        if found and self.batch_norm_data is None:
            raise ValueError(
                "A model with batch normalization needs batch_norm_data: "
                f"layers={[layer.name for layer in found]}, batch_norm_data=None"
            )

    def on_epoch_end(self, epoch, logs=None):
        if epoch < self._first or (epoch - self._first) % self.every:
            return
        weights = [ops.convert_to_numpy(v) for v in self.model.trainable_variables]
        if not self.count:
            self._mean = [np.zeros(w.shape, np.result_type(w.dtype, "float32")) for w in weights]
        self.count += 1
        for mean, weight in zip(self._mean, weights, strict=True):
            mean += (weight - mean) / self.count

    def on_train_end(self, logs=None):
        if not self.count:
            return
        model = self.model
        for variable, mean in zip(model.trainable_variables, self._mean, strict=True):
            variable.assign(mean)
        layers = _normalizations(model)
        if layers:
            self._estimate(model, layers)

    def get_state(self):
        """What a resumed training needs."""
        means = {f"mean_{i}": mean.copy() for i, mean in enumerate(self._mean)}
        return {"count": self.count} | means

    def set_state(self, state):
        """Take up a state, once training has begun."""
        self.count = state["count"]
        self._mean = [np.array(state[f"mean_{i}"]) for i in range(len(state) - 1)]

    def _estimate(self, model, layers):
        """Statistics of the weights that the model has now."""
        statistics = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
        others = model.non_trainable_variables
        place = {id(variable): i for i, variable in enumerate(others)}
        places = [place[id(variable)] for variable in statistics]
        # Without gradients, which PyTorch would follow from batch to batch through the state.
        trained = [ops.stop_gradient(ops.convert_to_tensor(v)) for v in model.trainable_variables]
        state = [ops.convert_to_tensor(v) for v in others]
        sums, count = [0.0] * len(places), 0
        takes_training = "training" in inspect.signature(model.call).parameters
        # As `fit` does it: without `training`, statistics are never trained.
        options = {"training": True} if takes_training else {}
        random_state = training_state.random_state()  # PyTorch drops out by its global generator
        momenta = [layer.momentum for layer in layers]
        try:
            for layer in layers:
                layer.momentum = 0.0  # their statistics are those of the last batch
            for x in self._batches():
                _, state = model.stateless_call(trained, state, x, **options)
                count += 1
                for i, at in enumerate(places):
                    sums[i] = sums[i] + np.array(ops.convert_to_numpy(state[at]), np.float64)
        finally:
            training_state.set_random_state(random_state)
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        if not count:
            raise ValueError("batch_norm_data must give batches at the end of training: batches=0")
        for variable, total in zip(statistics, sums, strict=True):
            variable.assign(total / count)

    def _batches(self):
        """Inputs, batch by batch."""
        data, size = self.batch_norm_data, self.batch_size
        if isinstance(data, np.ndarray) or ops.is_tensor(data):
            found = (data[i : i + size] for i in range(0, len(data), size))
        elif isinstance(data, keras.utils.PyDataset):
            found = (data[i] for i in range(len(data)))
        else:
            found = iter(data)
        for batch in itertools.islice(found, self.batch_norm_steps):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            yield keras.tree.map_structure(ops.convert_to_tensor, x)


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _normalizations(model):
    """Layers of batch normalization whose statistics training changes."""
    kind = keras.layers.BatchNormalization
    return [x for x in model._flatten_layers() if isinstance(x, kind) and x.trainable]
