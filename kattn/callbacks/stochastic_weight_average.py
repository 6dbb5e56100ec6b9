"""Stochastic weight averaging (Izmailov et al., 2018)."""

import inspect
import itertools
import math

import keras
import numpy as np
from keras import ops

from kattn.arguments import check_integers, check_optional_integers, error, is_integer
from kattn.callbacks.backup import training_state


class StochasticWeightAverage(keras.callbacks.Callback):
    """Give the model the mean of its weights at the ends of epochs, after `fit`.

    The mean is taken over the weights at the ends of epochs `start`, `start + every` and so on.
    During training nothing changes: validation and checkpoints see the weights as trained. At the
    end the trainable weights are set to the mean. The statistics of batch normalization do not fit
    to these weights, so they are estimated again, in training mode: those of a layer become the
    mean over batches of the mean and the variance of each batch. If a layer is called several times
    for a batch, its last call counts. Nothing else changes, seeds of dropout included. If training
    is stopped before `start`, the model keeps its weights, and `count` is 0.

    In the paper the learning rate is constant or cyclical from `start` on; use `LearningRate` for
    that.

    Args:
        start: First epoch whose weights count: an integer >= 0, or a fraction in (0, 1) of all
            epochs, rounded down.
        every: Number of epochs between two that count, an integer >= 1.
        batch_norm_data: Data to estimate the statistics with: an array, or anything that yields
            batches as `fit` takes them, x or (x, y) (`tf.data`, `PyDataset`, `DataLoader`, a list,
            a generator). It is needed if the model has batch normalization that trains.
        batch_size: Number of examples in a batch, if the data are an array; an integer >= 1.
        batch_norm_steps: Number of batches to use, an integer >= 1; None for all.

    Attributes:
        count: Number of epochs whose weights are in the mean.

    Raises:
        ValueError: If an argument is out of range. When training begins, if the model has batch
            normalization that trains and there is no `batch_norm_data`, if a layer uses batch
            renormalization, or if training ends before `start`. When training ends, if
            `batch_norm_data` yields no batch; the weights have been set to the mean by then.

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
        is_epoch = is_integer(start) and start >= 0
        if not is_epoch and not (isinstance(start, float) and 0 < start < 1):
            raise error("`start` must be an integer >= 0 or a fraction in (0, 1)", start=start)
        check_integers(1, every=every, batch_size=batch_size)
        check_optional_integers(1, batch_norm_steps=batch_norm_steps)
        if isinstance(batch_norm_data, tuple | dict):
            raise error(
                "`batch_norm_data` must be an array or yield batches",
                batch_norm_data=type(batch_norm_data).__name__,
            )
        self.start, self.every = start, every
        self.batch_norm_data, self.batch_size = batch_norm_data, batch_size
        self.batch_norm_steps = batch_norm_steps
        self.count = 0
        self._mean: list[np.ndarray] = []

    def on_train_begin(self, logs=None):
        self.count, self._mean = 0, []
        epochs = self.params["epochs"]
        self._first = self.start
        if isinstance(self.start, float):
            self._first = math.floor(self.start * epochs + 1e-9)  # 0.58 * 50 is less than 29
        if self._first >= epochs:
            raise error(
                "`start` must come before the end of training", start=self.start, epochs=epochs
            )
        layers = _normalizations(self.model)
        renormalized = [layer.name for layer in layers if layer.renorm]
        if renormalized:
            raise error(
                "The model must have no batch renormalization, whose statistics cannot be "
                "estimated again",
                layers=renormalized,
            )
        if layers and self.batch_norm_data is None:
            raise error(
                "`batch_norm_data` must be given for a model with batch normalization",
                batch_norm_data=None,
                layers=[layer.name for layer in layers],
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
        """Return what a resumed training needs."""
        means = {f"mean_{i}": mean.copy() for i, mean in enumerate(self._mean)}
        return {"count": self.count} | means

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        self.count = state["count"]
        self._mean = [np.array(state[f"mean_{i}"]) for i in range(len(state) - 1)]

    def _estimate(self, model, layers):
        """Estimate the statistics for the weights that the model has now."""
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
            raise error("`batch_norm_data` must yield batches at the end of training", batches=0)
        for variable, total in zip(statistics, sums, strict=True):
            variable.assign(total / count)

    def _batches(self):
        """Yield the inputs of each batch."""
        data, size = self.batch_norm_data, self.batch_size
        if isinstance(data, np.ndarray) or ops.is_tensor(data):
            batches = (data[i : i + size] for i in range(0, len(data), size))
        elif isinstance(data, keras.utils.PyDataset):
            batches = (data[i] for i in range(len(data)))
        else:
            batches = iter(data)
        for batch in itertools.islice(batches, self.batch_norm_steps):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            yield keras.tree.map_structure(ops.convert_to_tensor, x)


def _normalizations(model):
    """The layers of batch normalization whose statistics are changed by training."""
    kind = keras.layers.BatchNormalization
    return [x for x in model._flatten_layers() if isinstance(x, kind) and x.trainable]
