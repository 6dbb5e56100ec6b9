"""Gradients clipped inside the compiled step, by thresholds that may change at any time."""

import math

import numpy as np

from kattn.callbacks.clip_rule import LEFT_OUT, ROUNDING, ClipRule
from kattn.callbacks.optimizer_hook import RuleCallback
from kattn.callbacks.recorder import rows_needed
from kattn.callbacks.unit_axes import unit_axes
from kattn.callbacks.weight_groups import check_matches, check_patterns

MODES = ("value", "norm", "global_norm", "agc", "autoclip", "zclip")
THRESHOLDS = {"agc": 0.01, "autoclip": None, "zclip": None}  # where there is a usual one


class GradientClipping(RuleCallback):
    """Clip gradients, see their norms, and skip the steps whose gradients are not finite.

    It acts on what the optimizer is about to use: gradients unscaled, averaged over accumulated
    steps, the rows of an embedding summed. A clipping that the optimizer was built with comes
    after. The norms go into `history`, and into the logs of an epoch as `grad_norm` (mean),
    `grad_norm_max`, `clipped_fraction` (of the steps) and `skipped_steps`.

    Where an optimizer sees the gradients of one replica alone, as under `tf.distribute`, several
    are refused. Gradients that are reduced before (JAX's `keras.distribution`, PyTorch's DDP) have
    the norm of all.

    A skipped step leaves weights, moments and the count of updates as they were.

    Args:
        mode: What is clipped.
            "value": each number, to [-threshold, threshold].
            "norm": the gradient of each weight, to an l2 norm of `threshold`.
            "global_norm": all gradients together (of a group), to an l2 norm of `threshold`.
            "agc": adaptive: each output unit's gradient, to `threshold` (default 0.01) times the
            norm of the unit's weights. The paper leaves the output layer out: `{"head": None}`.
            "autoclip": all together, to the `percent`-th percentile of the norms so far, and to
            `threshold` if it is given.
            "zclip": all together; norms of more than `z_threshold` standard deviations above the
            running mean are brought below it; and to `threshold` if it is given.
        threshold: A positive number, or None for none.
        groups: Patterns (regular expressions, searched for in a weight's path) and the threshold of
            the weights that match. None: these are not clipped, not to a history either (infinity:
            to that alone). The first match counts; other weights have `threshold`. Each group has
            norms and a history of its own.
        percent: Of "autoclip", in (0, 100].
        window: Of "autoclip": how many norms it looks back.
        z_threshold: Of "zclip": standard deviations.
        smoothing: Of "zclip": the weight of the past in running mean and variance, in (0, 1).
        warmup: Of "zclip": steps whose norms give the first mean and variance.
        skip_nonfinite: Skip steps with a gradient that is infinite or NaN.

    Raises:
        ValueError: If an argument is out of its range. When training begins: if a pattern matches
            no weight, under `tf.distribute` with several replicas (where an optimizer sees the
            gradients of one), or for an optimizer made of several.

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
        Seetharaman et al. 2020 (autoclip), https://arxiv.org/abs/2007.14469; we look back over a
        window.
        Kumar et al. 2025 (zclip), https://arxiv.org/abs/2504.02507
    """

    tend_every = 256

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
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}: mode={mode!r}")
        if threshold is ...:
            threshold = THRESHOLDS.get(mode, 1.0)
        _check_range("percent", percent, 0, 100)
        _check_range("smoothing", smoothing, 0, 1 - 1e-9)
        _check_range("z_threshold", z_threshold, 0, math.inf)
        for name, value in (("window", window), ("warmup", warmup)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"{name} must be a whole number of steps, 1 or more: {name}={value!r}"
                )
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
        """Of the weights outside `groups`."""
        return self._thresholds[None]

    @property
    def groups(self):
        """Thresholds by pattern."""
        return {p: value for p, value in self._thresholds.items() if p is not None}

    def set(self, *, threshold=..., groups=None):
        """Change thresholds, between or in the middle of fits; nothing is traced again.

        Args:
            threshold: Of the weights outside `groups`. Left out: as it is.
            groups: Thresholds of some of the patterns that the callback was made with.

        Raises:
            ValueError: If a threshold is neither positive nor None, or a pattern is not known.
        """
        changes = {} if threshold is ... else {None: _checked("threshold", threshold)}
        for pattern, value in (groups or {}).items():
            if pattern is None or pattern not in self._thresholds:
                raise ValueError(
                    "groups must be of patterns that the callback was made with: "
                    f"pattern={pattern!r}, patterns={list(self.groups)}"
                )
            changes[pattern] = _checked(f"groups[{pattern!r}]", value)
        self._thresholds |= changes
        self._hand_over(self.rule)

    def _hand_over(self, rule):
        """Give the compiled step the thresholds."""
        if rule is not None:
            nothing = {None: math.inf}  # to a history alone
            values = [
                nothing.get(pattern, LEFT_OUT) if value is None else value
                for pattern, value in self._thresholds.items()
            ]
            rule.thresholds.assign(values)

    def signature(self):
        numbers = (self.percent, self.window, self.z_threshold, self.smoothing, self.warmup)
        return ("clip", self.mode, tuple(self.groups), numbers, self.skip_nonfinite)

    def make_rule(self):
        return ClipRule(self, unit_axes(self.model), rows_needed(self.model))

    def on_train_begin(self, logs=None):
        check_matches("groups", self.groups, self.model)
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.is_active.assign(1.0)
        self._hand_over(rule)
        rule.recorder.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = len(self.history["norm"])

    def tend(self, rule):
        rows = rule.recorder.read()
        for name, values in rows.items():
            self.history[name].extend(values.tolist())

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        norm, clipped, skipped = (
            np.array(values[self._epoch_start :]) for values in self.history.values()
        )
        if logs is not None and len(norm):
            done = skipped == 0
            logs["grad_norm"] = float(norm[done].mean()) if done.any() else math.nan
            logs["grad_norm_max"] = float(norm[done].max()) if done.any() else math.nan
            logs["clipped_fraction"] = float(
                (clipped < norm * (1.0 - ROUNDING))[done].sum() / len(norm)
            )
            logs["skipped_steps"] = int(skipped.sum())

    def get_state(self):
        """What a resumed training needs, beside the optimizer's variables."""
        rule = self.rule
        if rule is not None:
            self._tend(rule)
        thresholds = [list(item) for item in self._thresholds.items()]
        state = {"thresholds": thresholds, "history": self.history, "epoch": self._epoch_start}
        return state | {"read": 0 if rule is None else rule.recorder.read_until}

    def set_state(self, state):
        """Take up a state, once training has begun."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._epoch_start = state["epoch"]
        found = {p: _checked("threshold", value) for p, value in state["thresholds"]}
        self._thresholds.update(found)
        rule = self.rule
        if rule is not None:
            self._hand_over(rule)
            rule.recorder.read_until = state["read"]


def _check_range(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        raise ValueError(
            f"{name} must be a number above {low} and at most {high}: {name}={value!r}"
        )


def _checked(name, threshold):
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold > 0:
        raise ValueError(f"{name} must be positive, or None for no limit: {name}={threshold!r}")
    return float(threshold)
