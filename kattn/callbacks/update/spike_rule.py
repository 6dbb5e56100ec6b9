"""What `SpikeGuard` does in each update."""

from keras import ops

from kattn.callbacks.update import clipping
from kattn.callbacks.update.recorder import Recorder
from kattn.callbacks.update.rule import Rule


class SpikeRule(Rule):
    """Skips updates whose gradient norm is not finite or far above the running mean.

    Args:
        z_threshold: Standard deviations above the mean; None to skip no update.
        smoothing: Weight of the past in the running mean and variance, in (0, 1).
        warmup: Number of norms that give the first mean and variance.
        in_a_row: Number of updates in a row that may be skipped.
        rows: Rows of the recorder.
    """

    order = 20  # after clipping, which does not change what `update.norms` returns
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

    def change_gradients(self, update):
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
