"""Gradients clipped inside the compiled step, by thresholds that may change at any time."""

import math

import numpy as np

from kattn.arguments import (
    check_choice,
    check_integers,
    check_numbers,
    check_open_fractions,
    check_positive,
    error,
)
from kattn.callbacks.update.clip_rule import LEFT_OUT, ROUNDING, ClipRule
from kattn.callbacks.update.recorder import rows_needed
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.unit_axes import unit_axes
from kattn.callbacks.update.weight_groups import check_matches, check_patterns
from kattn.paths import weight_paths

MODES = ("value", "norm", "global_norm", "agc", "autoclip", "zclip")
DEFAULTS = {"agc": 0.01, "autoclip": None, "zclip": None}  # thresholds; of other modes 1.0


class GradientClipping(RuleCallback):
    """Clip gradients, log their norms, and skip steps whose gradients are not finite.

    Gradients are clipped as the optimizer is about to use them: unscaled, averaged over accumulated
    steps, and with the rows of an embedding summed. If the optimizer was built with a clipping of
    its own, that comes after. `history` has the norms of all steps; the logs of each epoch get
    `grad_norm` (mean of the norms before clipping), `grad_norm_max`, `clipped_fraction` (fraction
    of the steps whose gradients were reduced) and `skipped_steps` (their number). In an epoch
    without updates, as gradients are accumulated over several, the first three are NaN.

    A skipped step leaves the weights, the moments and the number of updates as they were.

    Several replicas under `tf.distribute` are refused, as the optimizer sees only the gradients of
    one replica there. With `keras.distribution` on JAX and with DDP on PyTorch the norms are those
    of all replicas together.

    Args:
        mode: How gradients are clipped.
            "value": each number is clipped to [-threshold, threshold].
            "norm": the gradient of each weight is scaled to an L2 norm of at most `threshold`.
            "global_norm": all gradients (of a group) are scaled by one factor, to a joint L2 norm
            of at most `threshold`.
            "agc": adaptive clipping. The gradient of each output unit is scaled to at most
            `threshold` (default 0.01) times the norm of the unit's weights. The paper leaves out
            the output layer: `groups={"head": None}`.
            "autoclip": all gradients are scaled by one factor, to at most the `percent`-th
            percentile of the norms so far; and to at most `threshold`, if it is given.
            "zclip": all gradients are scaled by one factor if their norm is more than `z_threshold`
            standard deviations above the running mean; and to at most `threshold`, if it is given.
        threshold: A number above 0, or None for no threshold. If it is left out, it is 1; 0.01 for
            "agc"; and None for "autoclip" and "zclip".
        groups: Dict from a pattern to the threshold of the weights that match. A pattern is a
            regular expression that is searched for in the paths of weights; the first match counts.
            None as a threshold means that these weights are not clipped at all; infinity means that
            they are clipped to their history only. Other weights have `threshold`. Each group has
            norms and a history of its own.
        percent: Percentile for "autoclip", in (0, 100].
        window: Number of norms that "autoclip" looks back at.
        z_threshold: Standard deviations for "zclip", above 0.
        smoothing: Weight of the past in the running mean and variance of "zclip", in (0, 1).
        warmup: Number of steps whose norms give "zclip" the first mean and variance.
        skip_nonfinite: Whether to skip steps whose gradients have an infinite number or NaN.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If an argument is out of range. When training begins, if a pattern matches no
            weight, if there are several replicas under `tf.distribute`, or if the optimizer
            consists of several (`MultiOptimizer`).

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1, name="head")]
        ... )
        >>> model.compile("adam", "mse")
        >>> clipping = kattn.callbacks.GradientClipping("agc", 0.02, groups={"head": None})
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> history = model.fit(x, y, callbacks=[clipping], verbose=0)
        >>> clipping.set(threshold=0.01)  # from the next step on
        >>> sorted(set(history.history) - {"loss"})
        ['clipped_fraction', 'grad_norm', 'grad_norm_max', 'skipped_steps']

    Reference:
        Pascanu et al. 2013, algorithm 1 (norms), https://arxiv.org/abs/1211.5063
        Brock et al. 2021, eq. 3 (agc), https://arxiv.org/abs/2102.06171
        Seetharaman et al. 2020 (autoclip), https://arxiv.org/abs/2007.14469; they look back over
        all steps, here it is a window.
        Kumar et al. 2025 (zclip), https://arxiv.org/abs/2504.02507
    """

    synchronize_every = 256

    def __init__(
        self,
        mode="global_norm",
        threshold=...,
        *,
        groups=None,
        percent=10.0,
        window=1000,
        z_threshold=2.5,
        smoothing=0.97,
        warmup=25,
        skip_nonfinite=True,
        optimizer=None,
    ):
        super().__init__(optimizer)
        check_choice(MODES, mode=mode)
        if threshold is ...:
            threshold = DEFAULTS.get(mode, 1.0)
        check_numbers("a number above 0 and at most 100", lambda x: 0 < x <= 100, percent=percent)
        check_open_fractions(smoothing=smoothing)
        check_positive(z_threshold=z_threshold)
        check_integers(1, window=window, warmup=warmup)
        self.mode = mode
        self.percent, self.window = percent, window
        self.z_threshold, self.smoothing, self.warmup = z_threshold, smoothing, warmup
        self.skip_nonfinite = skip_nonfinite
        self._thresholds = {None: _checked("threshold", threshold)}
        check_patterns("groups", groups or {})
        for pattern, value in (groups or {}).items():
            self._thresholds[pattern] = _checked(f"groups[{pattern!r}]", value)
        self.history: dict[str, list[float]] = {"norm": [], "clipped_norm": [], "is_skipped": []}
        self._epoch_start = 0

    @property
    def threshold(self):
        """The threshold of the weights that match no group."""
        return self._thresholds[None]

    @property
    def groups(self):
        """The thresholds of groups, a dict by pattern."""
        return {p: value for p, value in self._thresholds.items() if p is not None}

    def set(self, *, threshold=..., groups=None):
        """Change thresholds, at any time. Nothing is traced again.

        Args:
            threshold: New threshold of the weights that match no group. If it is left out, the
                threshold stays as it is.
            groups: Dict of new thresholds, by patterns that the callback was built with. Other
                groups stay as they are.

        Raises:
            ValueError: If a threshold is neither above 0 nor None, or a pattern is not known.
        """
        changes = {} if threshold is ... else {None: _checked("threshold", threshold)}
        for pattern, value in (groups or {}).items():
            if pattern is None or pattern not in self._thresholds:
                raise error(
                    "`groups` must have patterns that the callback was built with",
                    pattern=pattern,
                    patterns=list(self.groups),
                )
            changes[pattern] = _checked(f"groups[{pattern!r}]", value)
        self._thresholds |= changes
        self._write_thresholds(self.rule)

    def _write_thresholds(self, rule):
        """Hand the thresholds to the compiled step."""
        if rule is not None:
            unlimited = {None: math.inf}  # the weights of no group: clipped to a history only
            values = [
                unlimited.get(pattern, LEFT_OUT) if value is None else value
                for pattern, value in self._thresholds.items()
            ]
            rule.thresholds.assign(values)

    def signature(self):
        numbers = (self.percent, self.window, self.z_threshold, self.smoothing, self.warmup)
        return ("clip", self.mode, tuple(self.groups), numbers, self.skip_nonfinite)

    def make_rule(self):
        model = self.model
        return ClipRule(self, unit_axes(model), weight_paths(model), rows_needed(model))

    def on_train_begin(self, logs=None):
        check_matches("groups", self.groups, self.model)
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.is_active.assign(1.0)
        self._write_thresholds(rule)
        rule.recorder.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = len(self.history["norm"])

    def synchronize(self, rule):
        rows = rule.recorder.read()
        for name, values in rows.items():
            self.history[name].extend(values.tolist())

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        norm, clipped, skipped = (
            np.array(values[self._epoch_start :]) for values in self.history.values()
        )
        if logs is not None:
            done = skipped == 0
            reduced = (clipped < norm * (1.0 - ROUNDING))[done].sum()
            logs["grad_norm"] = float(norm[done].mean()) if done.any() else math.nan
            logs["grad_norm_max"] = float(norm[done].max()) if done.any() else math.nan
            logs["clipped_fraction"] = float(reduced / len(norm)) if len(norm) else math.nan
            logs["skipped_steps"] = int(skipped.sum())

    def get_state(self):
        """Return what a resumed training needs besides the variables of the optimizer."""
        rule = self.rule
        if rule is not None:
            self._synchronize(rule)
        thresholds = [list(item) for item in self._thresholds.items()]
        state = {"thresholds": thresholds, "history": self.history, "epoch": self._epoch_start}
        return state | {"read": 0 if rule is None else rule.recorder.read_until}

    def set_state(self, state):
        """Set the state that `get_state` has returned, after training has begun."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._epoch_start = state["epoch"]
        for pattern, value in state["thresholds"]:
            self._thresholds[pattern] = _checked("threshold", value)
        rule = self.rule
        if rule is not None:
            self._write_thresholds(rule)
            rule.recorder.read_until = state["read"]


def _checked(name, threshold):
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold > 0:
        raise error(f"`{name}` must be above 0, or None for no threshold", **{name: threshold})
    return float(threshold)
