"""What `GradientClipping` does in each update."""

from keras import ops

from kattn.callbacks.update import clipping
from kattn.callbacks.update.recorder import Recorder
from kattn.callbacks.update.rule import Rule
from kattn.callbacks.update.weight_groups import group_of

ROUNDING = 1e-6  # relative error of a norm that is summed in another order
LEFT_OUT = -1.0  # threshold of weights that are not clipped at all, not by a history either


class ClipRule(Rule):
    """Clips gradients group by group, and skips updates whose gradients are not finite.

    Args:
        settings: The `GradientClipping` that has the settings. No reference to it is kept.
        axes: Axes of a unit by the id of a weight, as `unit_axes` returns them.
        paths: Paths of weights by their id, as `weight_paths` returns them.
        rows: Rows of the recorder.
    """

    order = 10
    sees_gradients = True

    def __init__(self, settings, axes, paths, rows):
        self.mode, self.patterns = settings.mode, list(settings.groups)
        self.percent, self.window = settings.percent, settings.window
        self.z_threshold, self.smoothing = settings.z_threshold, settings.smoothing
        self.warmup, self.skip_nonfinite = settings.warmup, settings.skip_nonfinite
        self.axes, self.paths = axes, paths
        self.recorder = Recorder(("norm", "clipped_norm", "is_skipped"), rows)

    def build(self, hook):
        groups = 1 + len(self.patterns)
        self.is_active = hook.add_variable((), "clip_is_active", stays=True)
        self.thresholds = hook.add_variable((groups,), "clip_thresholds", stays=True)
        self.recorder.build(hook, "clip")
        if self.mode in ("autoclip", "zclip"):
            self.seen = hook.add_variable((groups,), "clip_seen", dtype="int32")
        if self.mode == "autoclip":
            self.norms = hook.add_variable((groups, self.window), "clip_norms")
        if self.mode == "zclip":
            self.mean = hook.add_variable((groups,), "clip_mean")
            self.variance = hook.add_variable((groups,), "clip_variance")

    def release(self):
        self.is_active.assign(0.0)

    def change_gradients(self, update):
        is_active = ops.convert_to_tensor(self.is_active) > 0
        # Norms of the gradients as they came, unless another rule has clipped them before.
        norms = update.norms()
        if update.clipped_norm is not None:
            norms = update.norms_of(update.gradients, range(len(update.variables)))
        norm = clipping.joint_norm(norms)
        is_finite = update.is_finite()
        if self.skip_nonfinite:
            update.require(ops.logical_or(is_finite, ops.logical_not(is_active)))
        thresholds = self._thresholds(update, is_active)
        clipped, squares = list(update.gradients), []
        for group, members in enumerate(self._members(update.variables)):
            if members:
                gradients, norm_after = self._clip(
                    update, norms, group, members, thresholds[group], is_active
                )
                squares.append(ops.square(norm_after))
                for i, gradient in zip(members, gradients, strict=True):
                    clipped[i] = gradient
        update.gradients = clipped
        is_skipped = ops.logical_not(is_finite) if self.skip_nonfinite else False
        clipped_norm = update.clipped_norm = ops.sqrt(sum(squares))
        self.recorder.write({"norm": norm, "clipped_norm": clipped_norm, "is_skipped": is_skipped})

    def _thresholds(self, update, is_active):
        """Thresholds, `(groups,)` float32; `LEFT_OUT` while the callback is not in use."""
        thresholds = ops.convert_to_tensor(self.thresholds)
        scheduled = update.numbers.get("clip_threshold")
        if scheduled is not None:
            is_first = ops.arange(len(self.patterns) + 1) == 0
            is_set = ops.logical_and(is_first, scheduled >= 0)
            thresholds = ops.where(is_set, scheduled, thresholds)
        return ops.where(is_active, thresholds, LEFT_OUT)

    def _members(self, variables):
        """Indices of the weights of each group; the first group has the weights of no pattern."""
        groups: list[list[int]] = [[] for _ in range(1 + len(self.patterns))]
        for i, variable in enumerate(variables):
            group = group_of(self.paths[id(variable)], self.patterns)
            groups[0 if group is None else 1 + group].append(i)
        return groups

    def _clip(self, update, norms, group, members, threshold, is_active):
        """The clipped gradients of a group, and their joint norm after clipping."""
        gradients = [update.gradients[i] for i in members]
        own = ops.take(norms, ops.convert_to_tensor(members, "int32"))
        if self.mode in ("value", "norm", "agc"):
            threshold = ops.where(threshold == LEFT_OUT, float("inf"), threshold)
        if self.mode == "value":
            clipped = clipping.clip_values(gradients, threshold)
        elif self.mode == "norm":
            clipped = clipping.clip_norms(gradients, own, threshold)
            return clipped, clipping.joint_norm(ops.minimum(own, threshold))
        elif self.mode == "agc":
            weights = [update.variables[i] for i in members]
            axes = [self.axes[id(weight)] for weight in weights]
            clipped = clipping.clip_units(gradients, weights, axes, threshold)
        else:
            norm = clipping.joint_norm(own)
            target = ops.minimum(self._target(group, norm, is_active), threshold)
            target = ops.where(threshold == LEFT_OUT, norm, target)
            clipped = clipping.clip_joint_norm(gradients, norm, target)
            return clipped, ops.minimum(norm, target)
        return clipped, clipping.joint_norm(update.norms_of(clipped, members))

    def _target(self, group, norm, is_active):
        """The norm that the history of a group allows; this norm then counts in the history."""
        if self.mode == "global_norm":
            return norm
        counts = ops.logical_and(is_active, ops.isfinite(norm))
        is_group = ops.arange(len(self.patterns) + 1) == group
        here = ops.logical_and(counts, is_group)
        seen = ops.convert_to_tensor(self.seen)
        step = self._autoclip if self.mode == "autoclip" else self._zclip
        target = step(group, norm, here, seen[group])
        self.seen.assign(seen + ops.cast(here, "int32"))
        return target

    def _autoclip(self, group, norm, here, seen):
        """Seetharaman et al. 2020, algorithm 1: a percentile of the norms, this one among them."""
        norms = ops.convert_to_tensor(self.norms)
        is_slot = ops.arange(self.window, dtype="int32") == seen % self.window
        norms = ops.where(ops.logical_and(here[:, None], is_slot), norm, norms)
        self.norms.assign(norms)
        count = ops.minimum(seen + ops.cast(here[group], "int32"), self.window)
        return clipping.percentile(norms[group], ops.maximum(count, 1), self.percent)

    def _zclip(self, group, norm, here, seen):
        """Kumar et al. 2025, algorithm 1: mean and variance of the first norms, then running."""
        mean, variance = ops.convert_to_tensor(self.mean), ops.convert_to_tensor(self.variance)
        old_mean, old_variance = mean[group], variance[group]
        is_warm = seen >= self.warmup
        target = clipping.zclip_target(norm, old_mean, old_variance, self.z_threshold)
        target = ops.where(is_warm, target, norm)
        past = ops.where(
            is_warm, self.smoothing, ops.cast(seen, "float32") / ops.cast(seen + 1, "float32")
        )
        new_mean = past * old_mean + (1.0 - past) * target
        # While it warms up, the exact variance of what has been seen (Welford 1962).
        other = ops.where(is_warm, new_mean, old_mean)
        square = (target - new_mean) * (target - other)
        new_variance = past * old_variance + (1.0 - past) * square
        self.mean.assign(ops.where(here, new_mean, mean))
        self.variance.assign(ops.where(here, new_variance, variance))
        return target
