"""Weights that rest at first and join the training epoch by epoch."""

import keras

from kattn.callbacks.layerwise_learning_rates import Multipliers
from kattn.callbacks.optimizer_hook import RuleCallback
from kattn.callbacks.weight_groups import check_matches, check_patterns, group_of

POLICIES = ("inference", "train")


class GradualUnfreezing(RuleCallback):
    """Weights that match a pattern do not change before their epoch.

    They are computed with, and their gradients feed the optimizer's moments, which are warm when
    their epoch comes; they are left out of the norms that clip others. Nothing is compiled again,
    `trainable` stays True. The price is that of a whole backward pass: what is to rest for good is
    better frozen with `trainable = False` before `compile`.

    Args:
        epochs: Patterns (regular expressions, searched for in a weight's path) and the epoch,
            counted from 0, with which weights that match begin to train. The first match counts;
            weights that match none train from the start.
        batch_norm: Layers of batch normalization whose scale rests: "inference", they normalise
            with their moving statistics and leave these alone, as frozen layers of Keras do, and
            the step is traced again when that ends; "train", they go on as ever.

    Raises:
        ValueError: If an argument is out of its range. When training begins, if a pattern matches
            no trainable weight.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(4, name="body"), keras.layers.Dense(1)]
        ... )
        >>> model.compile("adam", "mse")
        >>> freezing = kattn.callbacks.GradualUnfreezing({"body/": 2})  # epochs 0, 1: the head
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> history = model.fit(x, y, epochs=4, callbacks=[freezing], verbose=0)

    Reference:
        Howard & Ruder 2018, sec. 3.3, https://arxiv.org/abs/1801.06146
    """

    def __init__(self, epochs, *, batch_norm="inference"):
        super().__init__()
        self.epochs = dict(epochs)
        self.batch_norm = batch_norm
        if not self.epochs:
            raise ValueError(f"epochs must have a pattern: epochs={epochs!r}")
        check_patterns("epochs", self.epochs)
        for pattern, epoch in self.epochs.items():
            if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
                raise ValueError(
                    "epochs must be whole numbers of epochs, 0 or more: "
                    f"epochs[{pattern!r}]={epoch!r}"
                )
        if batch_norm not in POLICIES:
            raise ValueError(f"batch_norm must be one of {POLICIES}: batch_norm={batch_norm!r}")
        self._resting: list = []

    def signature(self):
        return ("unfreezing", tuple(self._starts()))

    def make_rule(self):
        return Multipliers(dict.fromkeys(self._starts(), 1.0))

    def on_train_begin(self, logs=None):
        check_matches("epochs", self.epochs, self.model)
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        starts = self._starts()
        self.rule.set([float(epoch >= start) for start in starts.values()])
        if self.batch_norm == "inference":
            self._rest([layer for layer in self._normalizations() if epoch < self._start(layer)])

    def release(self):
        super().release()
        if self._resting:
            self._rest([])

    def _starts(self):
        """Epochs by the paths of the weights that match a pattern."""
        found = {}
        for variable in self.model.trainable_variables:
            group = group_of(variable.path, self.epochs)
            if group is not None:
                found[variable.path] = list(self.epochs.values())[group]
        return found

    def _normalizations(self):
        layers = self.model._flatten_layers()
        return [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]

    def _start(self, layer):
        """The epoch with which its scale and shift train: the later, if they differ."""
        starts = self._starts()
        return max((starts.get(v.path, 0) for v in layer.trainable_variables), default=0)

    def _rest(self, layers):
        """Let these layers, and no others, run as in inference."""
        if [id(layer) for layer in layers] == [id(layer) for layer in self._resting]:
            return
        for layer in self._resting:
            object.__delattr__(layer, "call")
        for layer in layers:
            object.__setattr__(layer, "call", _in_inference(layer.call))
        self._resting = layers
        self.model.make_train_function(force=True)


def _in_inference(call):
    def resting(inputs, training=None, mask=None):
        return call(inputs, training=False, mask=mask)

    return resting
