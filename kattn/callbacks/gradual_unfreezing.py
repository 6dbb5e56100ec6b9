"""Weights that do not change at first and join the training epoch by epoch."""

import keras

from kattn.arguments import check_choice, check_integers, error
from kattn.callbacks.update.multipliers import Multipliers
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.weight_groups import check_matches, check_patterns, group_of
from kattn.paths import weight_paths

POLICIES = ("inference", "train")


class GradualUnfreezing(RuleCallback):
    """Keep weights unchanged until the epoch that is given for them.

    The model computes with these weights as usual, and their gradients go into the moments of the
    optimizer, which are warmed up when their epoch comes. Their norms do not count when the
    gradients of other weights are clipped. Nothing is compiled again, and `trainable` stays True.
    This costs a whole backward pass: weights that should never train are better frozen with
    `trainable = False` before `compile`.

    Args:
        epochs: Dict from a pattern to the epoch, counted from 0, from which on the weights that
            match are trained. A pattern is a regular expression that is searched for in the paths
            of weights; the first match counts. Weights that match no pattern are trained from the
            start.
        batch_norm: What layers of batch normalization do whose scale does not train yet.
            "inference": they normalize with their moving statistics and do not change these, as
            frozen layers of Keras; when that ends, the step is traced again. "train": they
            normalize with the statistics of the batch as usual.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If an argument is out of range. When training begins, if a pattern matches no
            trainable weight.

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

    def __init__(self, epochs, *, batch_norm="inference", optimizer=None):
        super().__init__(optimizer)
        self.epochs = dict(epochs)
        self.batch_norm = batch_norm
        if not self.epochs:
            raise error("`epochs` must have at least one pattern", epochs=epochs)
        check_patterns("epochs", self.epochs)
        check_integers(
            0, **{f"epochs[{pattern!r}]": epoch for pattern, epoch in self.epochs.items()}
        )
        check_choice(POLICIES, batch_norm=batch_norm)
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
            layers = self._normalizations()
            self._rest([layer for layer in layers if epoch < _start(layer, starts)])

    def release(self):
        super().release()
        if self._resting:
            self._rest([])

    def _starts(self):
        """The first epochs of weights that match a pattern, by the id of the weight."""
        starts, paths = {}, weight_paths(self.model)
        for variable in self.model.trainable_variables:
            group = group_of(paths[id(variable)], self.epochs)
            if group is not None:
                starts[id(variable)] = list(self.epochs.values())[group]
        return starts

    def _normalizations(self):
        layers = self.model._flatten_layers()
        return [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]

    def _rest(self, layers):
        """Let these layers, and no others, run in inference mode."""
        if [id(layer) for layer in layers] == [id(layer) for layer in self._resting]:
            return
        for layer in self._resting:
            object.__delattr__(layer, "call")
        for layer in layers:
            object.__setattr__(layer, "call", _in_inference(layer.call))
        self._resting = layers
        self.model.make_train_function(force=True)


def _start(layer, starts):
    """The epoch from which on both scale and shift of a layer are trained."""
    return max((starts.get(id(v), 0) for v in layer.trainable_variables), default=0)


def _in_inference(call):
    def resting(inputs, training=None, mask=None):
        return call(inputs, training=False, mask=mask)

    return resting
