"""Norms of gradients, weights and updates, and what attention looks at, in the logs."""

import contextlib
import inspect
import math
import re

import numpy as np
from keras import ops

from kattn import backend
from kattn.callbacks import clipping
from kattn.callbacks.clip_rule import ROUNDING
from kattn.callbacks.optimizer_hook import Rule, RuleCallback
from kattn.callbacks.recorder import Recorder, rows_needed
from kattn.callbacks.weight_groups import check_matches, check_patterns
from kattn.ops.attention import observed
from kattn.ops.kernels import dense

NORMS = ("grad_norm", "weight_norm", "update_norm")


class GradientMonitor(RuleCallback):
    """Norms of gradients, weights and updates in the logs of each epoch, and so in any log file.

    They are taken in the compiled step and read some hundred steps at a time. `history` has them
    step by step. The logs of an epoch get their means over its updates, as `grad_norm` (before any
    clipping), `weight_norm` and `update_norm` (of the changes of the weights, by which the learning
    rate can be judged: some 1e-3 of the weights' is usual), and `grad_norm_max`; each also as
    `grad_norm/<name>` and so on for each group; and `clipped_fraction`, the fraction of updates
    whose gradients a `GradientClipping` made smaller. Updates whose gradients are not finite are
    left out of the means.

    With `attention_data` the logs also get, for each attention layer of kattn, the mean entropy of
    its attention weights in nats, `attention_entropy/<layer's path>`, which falls to 0 where
    training becomes unstable; and its largest logit, `largest_logit/<layer's path>` (linear forms
    have none). Both are computed at the end of the epoch, in inference, on that batch alone.

    Args:
        groups: Names, and the patterns (regular expressions, searched for in a weight's path) of
            the weights that each means. A weight may be in several.
        attention_data: A batch of inputs for the model, without targets; None for no look at
            attention.

    Raises:
        ValueError: If a pattern is not a regular expression. When training begins: if a pattern
            matches no weight, under `tf.distribute` with several replicas, or if there is
            `attention_data` but no attention layer.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1, name="head")]
        ... )
        >>> model.compile("adam", "mse")
        >>> monitor = kattn.callbacks.GradientMonitor({"head": "head/"})
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> logs = model.fit(x, y, callbacks=[monitor], verbose=0).history
        >>> sorted(name for name in logs if name.startswith("update"))
        ['update_norm', 'update_norm/head']

    Reference:
        Zhai et al. 2023, attention entropy as a sign of instability,
        https://arxiv.org/abs/2303.06296
        Dehghani et al. 2023, sec. 2, growth of attention logits, https://arxiv.org/abs/2302.05442
    """

    tend_every = 256

    def __init__(self, groups=None, *, attention_data=None):
        super().__init__()
        self.groups = dict(groups or {})
        check_patterns("groups", self.groups.values())
        self.attention_data = attention_data
        self.history: dict[str, list[float]] = {}
        self._epoch_start = 0

    def signature(self):
        return ("monitor", tuple(self.groups.items()))

    def make_rule(self):
        return _Norms(self.groups, rows_needed(self.model))

    def on_train_begin(self, logs=None):
        check_matches("groups", self.groups.values(), self.model)
        if self.attention_data is not None and not attention_layers(self.model):
            raise ValueError(
                "attention_data needs a model with attention layers of kattn: "
                f"model={self.model.name!r}"
            )
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.recorder.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = len(self.history.get("grad_norm", ()))

    def tend(self, rule):
        for name, values in rule.recorder.read().items():
            self.history.setdefault(name, []).extend(values.tolist())

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if logs is None:
            return
        rows = {n: np.array(values[self._epoch_start :]) for n, values in self.history.items()}
        if rows and len(rows["grad_norm"]):
            logs.update(_summary(rows))
        if self.attention_data is not None:
            logs.update(attention_statistics(self.model, self.attention_data))

    def get_state(self):
        """What a resumed training needs, beside the optimizer's variables."""
        rule = self.rule
        if rule is not None:
            self._tend(rule)
        read = 0 if rule is None else rule.recorder.read_until
        return {"history": self.history, "epoch": self._epoch_start, "read": read}

    def set_state(self, state):
        """Take up a state, once training has begun."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._epoch_start = state["epoch"]
        rule = self.rule
        if rule is not None:
            rule.recorder.read_until = state["read"]


def _summary(rows):
    """Means over the updates whose gradients are finite."""
    good = np.isfinite(rows["grad_norm"])
    names = [name for name in rows if name != "is_clipped"]
    logs = {name: float(rows[name][good].mean()) if good.any() else math.nan for name in names}
    logs["grad_norm_max"] = float(rows["grad_norm"][good].max()) if good.any() else math.nan
    logs["clipped_fraction"] = float(rows["is_clipped"].mean())
    return logs


class _Norms(Rule):
    order = 90  # when others have clipped
    sees_gradients = True
    sees_changes = True

    def __init__(self, groups, rows):
        self._groups = groups
        names = [f"{norm}/{name}" for name in groups for norm in NORMS]
        self.recorder = Recorder((*NORMS, *names, "is_clipped"), rows)

    def build(self, hook):
        self.recorder.build(hook, "monitor")

    def gradients(self, update):
        update.norms()  # now: an optimizer may change gradients in place
        self._clipped = update.clipped_norm

    def after(self, update):
        weights = [ops.convert_to_tensor(variable) for variable in update.variables]
        found = {
            "grad_norm": update.norms(),
            "weight_norm": backend.norms(weights),
            "update_norm": backend.norms(update.changes()),
        }
        row = {name: clipping.joint_norm(norms) for name, norms in found.items()}
        for group, pattern in self._groups.items():
            paths = [variable.path for variable in update.variables]
            places = [i for i, path in enumerate(paths) if re.search(pattern, path)]
            places = ops.convert_to_tensor(places, "int32")
            for name, norms in found.items():
                row[f"{name}/{group}"] = clipping.joint_norm(ops.take(norms, places))
        most = row["grad_norm"] * (1.0 - ROUNDING)
        row["is_clipped"] = False if self._clipped is None else self._clipped < most
        self.recorder.write(row)


def attention_layers(model):
    """Layers of kattn that can say what they attend to."""
    return [layer for layer in model._flatten_layers() if hasattr(layer, "attention_weights")]


def attention_statistics(model, inputs):
    """Entropy and largest logit of each attention layer for a batch of inputs, by log name."""
    found: dict[str, list[float]] = {}
    path: list[str] = []

    def look(call):
        if path:
            logit = float(ops.convert_to_numpy(dense.largest_logit(call)))
            found.setdefault(f"largest_logit/{path[-1]}", []).append(logit)

    with contextlib.ExitStack() as stack:
        for layer in attention_layers(model):
            stack.enter_context(_watched(layer, path, found))
        stack.enter_context(observed(look))
        model(inputs, training=False)
    # A layer that is called several times has several.
    return {
        name: max(values) if name.startswith("largest") else sum(values) / len(values)
        for name, values in found.items()
    }


@contextlib.contextmanager
def _watched(layer, path, found):
    """Note the entropy of each call of a layer, and its path while it is called."""
    call, name = layer.call, layer.path or layer.name
    known = inspect.signature(layer.attention_weights).parameters

    def watched(*args, **kwargs):
        options = {word: value for word, value in kwargs.items() if word in known}
        weights = ops.convert_to_numpy(layer.attention_weights(*args, **options))
        found.setdefault(f"attention_entropy/{name}", []).append(entropy(weights))
        path.append(name)
        try:
            return call(*args, **kwargs)
        finally:
            path.pop()

    object.__setattr__(layer, "call", watched)
    try:
        yield
    finally:
        object.__delattr__(layer, "call")


def entropy(weights):
    """Of `(B, N, queries, keys)`, of one or more axes each: the mean of rows that are not 0.

    Rows are brought to a sum of 1 before, and weights below 0 count by their size.
    """
    keys = weights.shape[2 + (weights.ndim - 2) // 2 :]
    rows = np.abs(weights.reshape(-1, math.prod(keys))).astype(np.float64)
    sums = rows.sum(-1)
    rows = rows[sums > 0] / sums[sums > 0, None]
    logs = np.log(rows, where=rows > 0, out=np.zeros_like(rows))
    return float(-(rows * logs).sum(-1).mean()) if len(rows) else math.nan
