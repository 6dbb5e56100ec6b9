"""Span that would wreck a training, left out or taken back."""

import math
import warnings

import numpy as np
from keras import ops

from kattn.callbacks import clipping
from kattn.callbacks.optimizer_hook import Rule, RuleCallback, hook_of, number
from kattn.callbacks.recorder import Recorder, rows_needed


class SpikeGuard(RuleCallback):
    """Skip updates whose gradient is far too large; go back when the loss has run away.

    A gradient whose norm is not finite, or more than `z_threshold` standard deviations above the
    running mean, makes no update: in the compiled step, before the weights change. After `patience`
    such steps in a row the large norms are taken for the new normal, and the mean begins anew.

    The loss is looked at every `every` batches. If its mean since the last look is not finite, or
    above `loss_factor` times the running mean of the looks before, the model and the optimizer are
    set back to the look before the last. The data goes on, so the batches at fault do not come
    again at once; so do the seeds of dropout. `learning_rate` and schedules go back with
    `iterations`.

    `skipped` and `roll_backs` list the steps (updates before it) at which either happened. The logs
    of an epoch get `skipped_spikes` and `roll_backs`, counts.

    Args:
        z_threshold: Standard deviations, above 0; None to skip no step.
        smoothing: The weight of the past in the running mean and variance, in (0, 1).
        warmup: Span whose norms give the first mean and variance, 2 or more.
        patience: Span in a row that may be skipped, 1 or more.
        every: Batches from look to look, a multiple of `steps_per_execution`, each of which costs a
            copy of all variables; None never to go back.
        loss_factor: Above 1.
        max_roll_backs: Of a training. One more stops it, with a warning.

    Raises:
        ValueError: If an argument is out of its range, or both parts are off. When training begins:
            under `tf.distribute` with several replicas; if `every` is no multiple.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.ones((40, 2)), np.ones((40, 1))
        >>> x[33] = 1e6
        >>> guard = kattn.callbacks.SpikeGuard(every=None)
        >>> fit = {"batch_size": 1, "shuffle": False, "callbacks": [guard], "verbose": 0}
        >>> model.fit(x, y, **fit).history["skipped_spikes"]
        [1]

    Reference:
        Chowdhery et al. 2022, sec. 5.1, restart some 100 steps before a spike and leave out 200 to
        500 batches, https://arxiv.org/abs/2204.02311. We set back without a restart.
    """

    tend_every = 256

    def __init__(
        self,
        *,
        z_threshold=6.0,
        smoothing=0.97,
        warmup=25,
        patience=10,
        every=None,
        loss_factor=2.0,
        max_roll_backs=5,
    ):
        super().__init__()
        if z_threshold is None and every is None:
            raise ValueError("There must be something to do: z_threshold=None, every=None")
        for name, value, low, high in (
            ("z_threshold", z_threshold, 0, math.inf),
            ("smoothing", smoothing, 0, 1 - 1e-9),
            ("loss_factor", loss_factor, 1, math.inf),
        ):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and low < value <= high):
                raise ValueError(
                    f"{name} must be a number above {low} and at most {high}: {name}={value!r}"
                )
        for name, value, least in (
            ("warmup", warmup, 2),
            ("patience", patience, 1),
            ("every", every, 1),
            ("max_roll_backs", max_roll_backs, 0),
        ):
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (name == "every" and value is None) and not (is_whole and value >= least):
                raise ValueError(
                    f"{name} must be a whole number, {least} or more: {name}={value!r}"
                )
        self.z_threshold, self.smoothing, self.warmup = z_threshold, smoothing, warmup
        self.patience, self.every = patience, every
        self.loss_factor, self.max_roll_backs = loss_factor, max_roll_backs
        self.skipped: list[int] = []
        self.roll_backs: list[int] = []
        self._looks = 0
        self._mean = math.nan
        self._seen = (0.0, 0.0)  # the loss metric's total and count at the last look
        self._snapshots: list[list[np.ndarray]] = []
        self._counts = (0, 0)
        self._before = 0  # roll-backs of earlier fits
        self._has_looked = False  # at the end of this epoch

    def signature(self):
        return ("spikes", self.z_threshold, self.smoothing, self.warmup, self.patience)

    def make_rule(self):
        numbers = (self.z_threshold, self.smoothing, self.warmup, self.patience)
        return _SkipSpikes(*numbers, rows_needed(self.model))

    def on_train_begin(self, logs=None):
        steps = getattr(self.model, "steps_per_execution", 1)
        if self.every is not None and self.every % steps:
            raise ValueError(
                "every must be a multiple of the model's steps_per_execution: "
                f"every={self.every}, steps_per_execution={steps}"
            )
        super().on_train_begin(logs)
        self._snapshots, self._looks, self._mean = [], 0, math.nan
        self._before = len(self.roll_backs)

    def begin(self, rule):
        rule.is_active.assign(1.0)
        rule.recorder.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._seen, self._has_looked = (0.0, 0.0), False
        self._counts = (len(self.skipped), len(self.roll_backs))

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        if self.every is not None and batch % self.every == 0:
            self._look()

    def on_test_begin(self, logs=None):
        # In `fit`, before validation takes the metric of the loss for its own.
        if self.every is not None and self.rule is not None and not self._has_looked:
            self._look()
            self._has_looked = True

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.every is not None and not self._has_looked:
            self._look()
        if logs is not None:
            skipped, roll_backs = self._counts
            logs["skipped_spikes"] = len(self.skipped) - skipped
            logs["roll_backs"] = len(self.roll_backs) - roll_backs

    def tend(self, rule):
        rows = rule.recorder.read()
        steps = rows["step"][rows["is_skipped"] > 0]
        self.skipped.extend(steps.astype(int).tolist())

    def _look(self):
        """At the loss since the last look: keep what there is, or go back."""
        model = self.model
        loss = self._loss_since(model)
        if loss is None:
            if not self._snapshots:
                self._snapshots = [self._copies(model)]
            return
        is_known = self._looks > 0
        if math.isfinite(loss) and not (is_known and loss > self.loss_factor * self._mean):
            self._mean = loss if not is_known else 0.7 * self._mean + 0.3 * loss
            self._looks += 1
            self._snapshots = [*self._snapshots[-1:], self._copies(model)]
            return
        if len(self.roll_backs) - self._before <= self.max_roll_backs:
            self.roll_backs.append(number(hook_of(model).optimizer.iterations))
        count = len(self.roll_backs) - self._before
        if count > self.max_roll_backs and not model.stop_training:
            warnings.warn(
                f"SpikeGuard stops the training: the loss has run away {count} "
                f"times, last to {loss:.4g} from {self._mean:.4g}",
                stacklevel=2,
            )
            model.stop_training = True
        values = self._snapshots[0]
        for variable, value in zip(self._variables(model), values, strict=True):
            variable.assign(value)
        self._snapshots = [values]

    def _loss_since(self, model):
        """The mean of the loss since the last look, or None if there was no batch."""
        tracker = next((m for m in model.metrics if m.name == "loss"), None)
        if tracker is None:
            return None
        total, count = number(tracker.total), number(tracker.count)
        before, self._seen = self._seen, (total, count)
        if not math.isfinite(total):
            tracker.reset_state()  # or the metric would stay so for the rest of the epoch
            self._seen = (0.0, 0.0)
            return math.inf
        return (total - before[0]) / (count - before[1]) if count > before[1] else None

    def _variables(self, model):
        seeds = {id(v) for layer in model._flatten_layers() for v in _seeds(layer)}
        weights = [v for v in model.weights if id(v) not in seeds]
        return [*weights, *hook_of(model).state()]

    def _copies(self, model):
        return [np.array(ops.convert_to_numpy(v), copy=True) for v in self._variables(model)]

    def get_state(self):
        """What a resumed training needs, beside the optimizer's variables."""
        rule = self.rule
        if rule is not None:
            self._tend(rule)
        return {
            "skipped": self.skipped,
            "roll_backs": self.roll_backs,
            "looks": self._looks,
            "mean": self._mean,
            "seen": list(self._seen),
            "counts": [*self._counts, self._before],
            "read": 0 if rule is None else rule.recorder.read_until,
            "snapshots": self._snapshots,
        }

    def set_state(self, state):
        """Take up a state, once training has begun."""
        self.skipped, self.roll_backs = list(state["skipped"]), list(state["roll_backs"])
        self._looks, self._mean = state["looks"], state["mean"]
        self._seen = tuple(state["seen"])
        *counts, self._before = state["counts"]
        self._counts = tuple(counts)
        self._snapshots = [list(values) for values in state["snapshots"]]
        rule = self.rule
        if rule is not None:
            rule.recorder.read_until = state["read"]


def _seeds(layer):
    return [generator.state for generator in getattr(layer, "_seed_generators", [])]


class _SkipSpikes(Rule):
    order = 20  # after clipping, which does not change what `update.norms` says
    sees_gradients = True

    def __init__(self, z_threshold, smoothing, warmup, in_a_row, rows):
        self._z_threshold, self._smoothing = z_threshold, smoothing
        self._warmup, self._in_a_row = warmup, in_a_row
        self.recorder = Recorder(("step", "is_skipped"), rows)

    def build(self, hook):
        self.is_active = hook.add_variable((), "spikes_is_active", stays=True)
        self._seen = hook.add_variable((), "spikes_seen")
        self._row = hook.add_variable((), "spikes_in_a_row")
        self._mean = hook.add_variable((), "spikes_mean")
        self._variance = hook.add_variable((), "spikes_variance")
        self.recorder.build(hook, "spikes")

    def release(self):
        self.is_active.assign(0.0)

    def gradients(self, update):
        if self._z_threshold is None:
            return
        is_active = ops.convert_to_tensor(self.is_active) > 0
        seen, row = ops.convert_to_tensor(self._seen), ops.convert_to_tensor(self._row)
        mean = ops.convert_to_tensor(self._mean)
        variance = ops.convert_to_tensor(self._variance)
        norm = clipping.joint_norm(update.norms())
        is_finite = update.is_finite()
        highest = mean + self._z_threshold * (ops.sqrt(variance) + 1e-6)
        is_spike = ops.logical_and(seen >= self._warmup, norm > highest)
        # A row that has lasted too long: what is large has become usual.
        is_new_normal = ops.logical_and(is_spike, row >= self._in_a_row)
        is_spike = ops.logical_and(is_spike, ops.logical_not(is_new_normal))
        is_good = ops.logical_and(is_finite, ops.logical_not(is_spike))
        counts = ops.logical_and(is_active, is_good)
        past = ops.where(is_new_normal, 0.0, seen)
        weight = ops.where(past >= self._warmup, self._smoothing, past / (past + 1.0))
        new_mean = weight * mean + (1.0 - weight) * norm
        new_variance = weight * (variance + (1.0 - weight) * ops.square(norm - mean))
        self._mean.assign(ops.where(counts, new_mean, mean))
        self._variance.assign(ops.where(counts, new_variance, variance))
        self._seen.assign(ops.where(counts, past + 1.0, seen))
        row = ops.where(is_good, 0.0, row + 1.0)
        self._row.assign(ops.where(is_active, row, 0.0))
        update.require(ops.logical_or(is_good, ops.logical_not(is_active)))
        is_skipped = ops.logical_not(is_good)
        self.recorder.write({"step": update.step, "is_skipped": is_skipped})
