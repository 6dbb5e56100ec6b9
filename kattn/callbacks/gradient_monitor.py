"""Norms of gradients, weights and updates, and statistics of attention, in the logs."""

import math
import re

import numpy as np
from keras import ops

from kattn import backend
from kattn.arguments import error
from kattn.callbacks.update import clipping
from kattn.callbacks.update.clip_rule import ROUNDING
from kattn.callbacks.update.recorder import Recorder, rows_needed
from kattn.callbacks.update.rule import Rule
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.weight_groups import check_matches, check_patterns
from kattn.paths import weight_paths
from kattn.visualize.capture import attention_layers, capture_attention

NORMS = ("grad_norm", "weight_norm", "update_norm")


class GradientMonitor(RuleCallback):
    """Log norms of gradients, weights and updates, and statistics of attention.

    The norms are computed inside the compiled step, for each update. `history` has them update by
    update. The logs of each epoch, and so any log file, get their means over the epoch:

    - `grad_norm`: norm of all gradients together, before any clipping; and `grad_norm_max`, the
      largest of the epoch;
    - `weight_norm`: norm of all trainable weights after the update;
    - `update_norm`: norm of the change of the weights. It is usually about 1e-3 of `weight_norm`;
      if it is far from that, the learning rate is worth a look;
    - the same for each group, such as `grad_norm/<name of the group>`;
    - `clipped_fraction`: fraction of the updates whose gradients a `GradientClipping` reduced.

    Updates whose gradients are not finite are left out of the means. In an epoch without updates,
    as gradients are accumulated over several, the numbers are NaN.

    With `attention_data` the logs also get, for each attention layer of kattn,
    `attention_entropy/<path of the layer>`, the mean entropy of its attention weights in nats,
    which falls to 0 where training becomes unstable; and `largest_logit/<path of the layer>`, its
    largest score before the softmax, which layers of linear attention do not have. They are
    computed at the end of the epoch, in inference, on that one batch.

    Args:
        groups: Dict from the name of a group to the pattern of its weights: a regular expression
            that is searched for in the paths of weights. A weight may be in several groups. None
            for no groups.
        attention_data: One batch of inputs of the model, without targets, on which attention is
            looked at. None for no statistics of attention.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If a pattern is not a regular expression. When training begins, if a pattern
            matches no weight, if there are several replicas under `tf.distribute`, or if
            `attention_data` is given and the model has no attention layer of kattn.

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

    synchronize_every = 256

    def __init__(self, groups=None, *, attention_data=None, optimizer=None):
        super().__init__(optimizer)
        self.groups = dict(groups or {})
        check_patterns("groups", self.groups.values())
        self.attention_data = attention_data
        self.history: dict[str, list[float]] = {}
        self._epoch_start = 0

    def signature(self):
        return ("monitor", tuple(self.groups.items()))

    def make_rule(self):
        return _Norms(self.groups, weight_paths(self.model), rows_needed(self.model))

    def on_train_begin(self, logs=None):
        check_matches("groups", self.groups.values(), self.model)
        if self.attention_data is not None and not attention_layers(self.model):
            raise error(
                "`attention_data` must be None for a model without attention layers of kattn",
                model=self.model.name,
            )
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.recorder.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = len(self.history.get("grad_norm", ()))

    def synchronize(self, rule):
        for name, values in rule.recorder.read().items():
            self.history.setdefault(name, []).extend(values.tolist())

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if logs is None:
            return
        rows = {n: np.array(values[self._epoch_start :]) for n, values in self.history.items()}
        logs.update(_summary(rows))
        if self.attention_data is not None:
            logs.update(attention_statistics(self.model, self.attention_data))

    def get_state(self):
        """Return what a resumed training needs besides the variables of the optimizer."""
        rule = self.rule
        if rule is not None:
            self._synchronize(rule)
        read = 0 if rule is None else rule.recorder.read_until
        return {"history": self.history, "epoch": self._epoch_start, "read": read}

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._epoch_start = state["epoch"]
        rule = self.rule
        if rule is not None:
            rule.recorder.read_until = state["read"]


def _summary(rows):
    """The numbers for the logs: means over the updates whose gradients are finite."""
    good = np.isfinite(rows["grad_norm"])
    names = [name for name in rows if name != "is_clipped"]
    logs = {name: float(rows[name][good].mean()) if good.any() else math.nan for name in names}
    logs["grad_norm_max"] = float(rows["grad_norm"][good].max()) if good.any() else math.nan
    logs["clipped_fraction"] = float(rows["is_clipped"].mean()) if len(good) else math.nan
    return logs


class _Norms(Rule):
    order = 90  # after the rules that clip
    sees_gradients = True
    sees_changes = True

    def __init__(self, groups, paths, rows):
        self._groups, self._paths = groups, paths
        names = [f"{norm}/{name}" for name in groups for norm in NORMS]
        self.recorder = Recorder((*NORMS, *names, "is_clipped"), rows)

    def build(self, hook):
        self.recorder.build(hook, "monitor")

    def change_gradients(self, update):
        update.norms()  # now: an optimizer may change gradients in place
        self._clipped = update.clipped_norm

    def after_update(self, update):
        weights = [ops.convert_to_tensor(variable) for variable in update.variables]
        norms_of = {
            "grad_norm": update.norms(),
            "weight_norm": backend.norms(weights),
            "update_norm": backend.norms(update.changes()),
        }
        row = {name: clipping.joint_norm(norms) for name, norms in norms_of.items()}
        for group, pattern in self._groups.items():
            paths = [self._paths[id(variable)] for variable in update.variables]
            places = [i for i, path in enumerate(paths) if re.search(pattern, path)]
            places = ops.convert_to_tensor(places, "int32")
            for name, norms in norms_of.items():
                row[f"{name}/{group}"] = clipping.joint_norm(ops.take(norms, places))
        most = row["grad_norm"] * (1.0 - ROUNDING)
        row["is_clipped"] = False if self._clipped is None else self._clipped < most
        self.recorder.write(row)


def attention_statistics(model, inputs):
    """Return entropy and largest logit of each attention layer, by the name in the logs.

    For a layer that the model calls several times they are the mean entropy and the largest logit.

    Args:
        model: A model with attention layers of kattn.
        inputs: One batch of inputs.
    """
    logs = {}
    for path, calls in capture_attention(model, inputs, reduce=entropy).items():
        logs[f"attention_entropy/{path}"] = sum(call.weights for call in calls) / len(calls)
        logits = [call.largest_logit for call in calls if call.largest_logit is not None]
        if logits:
            logs[f"largest_logit/{path}"] = max(logits)
    return logs


def entropy(weights):
    """Return the mean entropy of rows of attention weights, in nats.

    Rows that are 0 do not count. Other rows are first scaled to a sum of 1, and weights below 0
    count by their absolute value.

    Args:
        weights: Array of shape `(B, N, queries, keys)`, where queries and keys may have several
            axes each.
    """
    keys = weights.shape[2 + (weights.ndim - 2) // 2 :]
    rows = np.abs(weights.reshape(-1, math.prod(keys))).astype(np.float64)
    sums = rows.sum(-1)
    rows = rows[sums > 0] / sums[sums > 0, None]
    logs = np.log(rows, where=rows > 0, out=np.zeros_like(rows))
    return float(-(rows * logs).sum(-1).mean()) if len(rows) else math.nan
