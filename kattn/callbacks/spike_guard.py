"""Protection from updates and losses that would wreck a training."""

import math
import warnings
from typing import Any

import numpy as np

from kattn.arguments import (
    check_integers,
    check_numbers,
    check_open_fractions,
    check_optional_integers,
    check_optional_positive,
    error,
)
from kattn.callbacks.backup import holdings, training_state
from kattn.callbacks.update.hooks import existing_hook
from kattn.callbacks.update.recorder import rows_needed
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.spike_rule import SpikeRule
from kattn.callbacks.update.values import assign, copies, number


class SpikeGuard(RuleCallback):
    """Skip updates whose gradient is far too large, and go back when the loss has run away.

    An update is skipped if the norm of its gradient is not finite, or more than `z_threshold`
    standard deviations above the running mean. This is decided inside the compiled step, before the
    weights change. After `patience` skipped updates in a row the large norms are taken as the new
    normal, and the running mean starts over.

    Every `every` batches the mean loss since the last check is compared with the running mean of
    earlier checks. If it is not finite, or more than `loss_factor` times that mean, the model and
    the optimizer are set back to the check before the last one. The data and the seeds of dropout
    go on, so that the batches at fault do not come again at once. `learning_rate` and schedules go
    back together with the optimizer's `iterations`.

    `skipped` and `roll_backs` list the steps (number of updates made before) at which either
    happened. The logs of each epoch get `skipped_spikes` and `roll_backs`, how often.

    Args:
        z_threshold: Standard deviations above the mean from which on an update is skipped, above 0.
            None to skip no updates.
        smoothing: Weight of the past in the running mean and variance of the norms, in (0, 1).
        warmup: Number of steps whose norms give the first mean and variance, an integer >= 2.
        patience: Number of steps in a row that may be skipped, an integer >= 1.
        every: Batches between two checks of the loss, a multiple of `steps_per_execution`. Each
            check copies all variables to the host. None never to go back.
        loss_factor: Factor on the running mean of the loss from which on training goes back, above
            1.
        max_roll_backs: How often a training may go back, an integer >= 0. If it would go back once
            more, it is stopped with a warning.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If an argument is out of range, or both `z_threshold` and `every` are None. When
            training begins, if there are several replicas under `tf.distribute`, or if `every` is
            not a multiple of `steps_per_execution`.

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
        500 batches, https://arxiv.org/abs/2204.02311. This callback sets back without a restart.
    """

    synchronize_every = 256

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
        optimizer=None,
    ):
        super().__init__(optimizer)
        if z_threshold is None and every is None:
            raise error(
                "`z_threshold` or `every` must be given, or there is nothing to do",
                z_threshold=None,
                every=None,
            )
        check_optional_positive(z_threshold=z_threshold)
        check_open_fractions(smoothing=smoothing)
        check_numbers("a finite number above 1", lambda x: x > 1, loss_factor=loss_factor)
        check_integers(2, warmup=warmup)
        check_integers(1, patience=patience)
        check_optional_integers(1, every=every)
        check_integers(0, max_roll_backs=max_roll_backs)
        self.z_threshold, self.smoothing, self.warmup = z_threshold, smoothing, warmup
        self.patience, self.every = patience, every
        self.loss_factor, self.max_roll_backs = loss_factor, max_roll_backs
        self.skipped: list[int] = []
        self.roll_backs: list[int] = []
        self._checks = 0
        self._mean = math.nan
        self._seen = (0.0, 0.0)  # total and count of the loss metric when it was read last
        self._banked = (0.0, 0.0)  # total and count since the last check until then
        self._stock_evaluate: Any = None  # `model.evaluate`, while it is watched
        self._snapshots: list[list[np.ndarray]] = []
        self._counts = (0, 0)
        self._before = 0  # roll-backs of earlier fits
        self._has_checked = False  # at the end of this epoch

    def signature(self):
        return ("spikes", self.z_threshold, self.smoothing, self.warmup, self.patience)

    def make_rule(self):
        numbers = (self.z_threshold, self.smoothing, self.warmup, self.patience)
        return SpikeRule(*numbers, rows_needed(self.model))

    def on_train_begin(self, logs=None):
        steps = getattr(self.model, "steps_per_execution", 1)
        if self.every is not None and self.every % steps:
            raise error(
                "`every` must be a multiple of the model's steps_per_execution",
                every=self.every,
                steps_per_execution=steps,
            )
        super().on_train_begin(logs)
        self._snapshots, self._checks, self._mean = [], 0, math.nan
        self._before = len(self.roll_backs)
        if self.every is not None and self._stock_evaluate is None:
            self._stock_evaluate = self.model.evaluate
            object.__setattr__(self.model, "evaluate", self._evaluate)

    def begin(self, rule):
        rule.is_active.assign(1.0)
        rule.recorder.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._seen, self._banked, self._has_checked = (0.0, 0.0), (0.0, 0.0), False
        self._counts = (len(self.skipped), len(self.roll_backs))

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        if self.every is not None and batch % self.every == 0:
            self._check_loss()

    def on_test_begin(self, logs=None):
        # Validation during `fit` is about to reset the metric of the loss.
        if self.every is not None and self.rule is not None and not self._has_checked:
            self._check_loss()
            self._has_checked = True

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.every is not None and not self._has_checked:
            self._check_loss()
        if logs is not None:
            skipped, roll_backs = self._counts
            logs["skipped_spikes"] = len(self.skipped) - skipped
            logs["roll_backs"] = len(self.roll_backs) - roll_backs

    def synchronize(self, rule):
        rows = rule.recorder.read()
        steps = rows["step"][rows["is_skipped"] > 0]
        self.skipped.extend(steps.astype(int).tolist())

    def _check_loss(self):
        """Compare the loss since the last check with earlier ones: keep the state, or go back."""
        with training_state.as_trained(self.model):
            self._keep_or_go_back(self.model)

    def _keep_or_go_back(self, model):
        loss = self._loss_since(model)
        if loss is None:
            if not self._snapshots:
                self._snapshots = [copies(self._variables(model))]
            return
        is_known = self._checks > 0
        if math.isfinite(loss) and not (is_known and loss > self.loss_factor * self._mean):
            self._mean = loss if not is_known else 0.7 * self._mean + 0.3 * loss
            self._checks += 1
            self._snapshots = [*self._snapshots[-1:], copies(self._variables(model))]
            return
        if len(self.roll_backs) - self._before <= self.max_roll_backs:
            self.roll_backs.append(number(self.hook.optimizer.iterations))
        count = len(self.roll_backs) - self._before
        if count > self.max_roll_backs and not model.stop_training:
            warnings.warn(
                f"SpikeGuard stops the training: the loss has run away {count} "
                f"times, last to {loss:.4g} from {self._mean:.4g}",
                stacklevel=2,
            )
            model.stop_training = True
        values = self._snapshots[0]
        assign(self._variables(model), values)
        self._snapshots = [values]
        for owner in training_state.rule_owners(model):
            owner.renew()

    def _loss_since(self, model):
        """The mean loss since the last check, or None if there was no batch."""
        self._bank(model)
        (total, count), self._banked = self._banked, (0.0, 0.0)
        if not math.isfinite(total):
            return math.inf
        return total / count if count > 0 else None

    def _bank(self, model):
        """Add what the metric of the loss has counted since it was read last."""
        now, before = self._read_loss(model), self._seen
        added = (each - past for each, past in zip(now, before, strict=True))
        total, count = map(sum, zip(self._banked, added, strict=True))
        self._banked = (total, count)
        self._seen = now if math.isfinite(now[0]) else (0.0, 0.0)

    def _read_loss(self, model):
        """Total and count of the metric of the loss."""
        tracker = next((m for m in model.metrics if m.name == "loss"), None)
        if tracker is None:
            return 0.0, 0.0
        found = number(tracker.total), number(tracker.count)
        if not math.isfinite(found[0]):
            tracker.reset_state()  # or the metric would not be finite for the rest of the epoch
        return found

    def _evaluate(self, *args, **kwargs):
        """`model.evaluate`, which counts with the same metric, so that its losses are left out."""
        self._bank(self.model)
        try:
            return self._stock_evaluate(*args, **kwargs)
        finally:
            total, count = self._read_loss(self.model)
            self._seen = (total, count) if math.isfinite(total) else (0.0, 0.0)

    def release(self):
        if self._stock_evaluate is not None:
            object.__delattr__(self.model, "evaluate")
            self._stock_evaluate = None
        super().release()

    def _variables(self, model):
        seeds = {id(v) for layer in model._flatten_layers() for v in _seeds(layer)}
        weights = [v for v in holdings.variables(model) if id(v) not in seeds]
        return [*weights, *_optimizer_state(model)]

    def get_state(self):
        """Return what a resumed training needs besides the variables of the optimizer."""
        rule = self.rule
        if rule is not None:
            self._synchronize(rule)
        return {
            "skipped": self.skipped,
            "roll_backs": self.roll_backs,
            "checks": self._checks,
            "mean": self._mean,
            "seen": [*self._seen, *self._banked],
            "counts": [*self._counts, self._before],
            "read": 0 if rule is None else rule.recorder.read_until,
            "snapshots": self._snapshots,
        }

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        self.skipped, self.roll_backs = list(state["skipped"]), list(state["roll_backs"])
        self._checks, self._mean = state["checks"], state["mean"]
        self._seen, self._banked = tuple(state["seen"][:2]), tuple(state["seen"][2:])
        *counts, self._before = state["counts"]
        self._counts = tuple(counts)
        self._snapshots = [list(values) for values in state["snapshots"]]
        rule = self.rule
        if rule is not None:
            rule.recorder.read_until = state["read"]


def _optimizer_state(model):
    """The variables of all optimizers, without those of rules that stay as they are."""
    state = []
    for optimizer in holdings.optimizers(model):
        hook = existing_hook(optimizer)
        staying = set() if hook is None else hook.staying
        state += [v for v in optimizer.variables if id(v) not in staying]
    return state


def _seeds(layer):
    return [generator.state for generator in getattr(layer, "_seed_generators", [])]
