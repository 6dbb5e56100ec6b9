"""A range test: find a good learning rate by training a little, and put everything back."""

import math

import keras
import numpy as np

from kattn.arguments import check_fractions, check_integers, check_numbers, check_positive, error
from kattn.callbacks.backup.snapshot import Snapshot
from kattn.callbacks.learning_rate_curve import LearningRateCurve
from kattn.callbacks.update.hooks import hook_of
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.sweep_rule import SweepRule

REFUSED = (
    "epochs",
    "initial_epoch",
    "validation_data",
    "validation_split",
    "validation_steps",
    "validation_batch_size",
    "validation_freq",
)
PATIENCE = 50  # skipped updates in a row; a loss scale is tiny after being halved 40 times


class LearningRateFinder:
    """Train with growing learning rates to find a good one, and put everything back.

    The rate of update i is low (high / low)^(i / (steps - 1)). It is set inside the compiled step,
    whatever rate or schedule the optimizer was built with.

    Afterwards training is bit for bit as if the finder had not run, even if it was interrupted:
    weights, batch statistics, seeds of layers, the optimizer, metrics, `model.history`, and the
    global random generators of Python, NumPy and PyTorch are put back. A copy of all variables is
    kept on the host meanwhile. The following are not put back: data that draw an order of their
    own, such as generators and a shuffled `tf.data`; the state of other callbacks (give the finder
    new ones); and random numbers that are drawn without a seed from the global generator of Keras.

    A point of the curve is one update: the mean loss of the batches whose gradients it accumulates,
    before the weights change. With `steps_per_execution` a point is one execution: its mean loss,
    at the geometric mean of its rates.

    Args:
        low: Learning rate of the first update, above 0.
        high: Learning rate of the last update, above `low`.
        steps: Number of updates, an integer >= 2. Epochs are repeated as needed.
        smoothing: Weight of the past in the smoothed loss, in [0, 1). The smoothed loss, and so the
            suggested rates, lag behind by about 1 / (1 - smoothing) steps: with 0.98 this is half
            of 100 steps.
        stop_factor: The run stops early if the smoothed loss is above this many times its minimum
            so far, after the first tenth of the steps. Above 1; infinity never to stop for this
            reason. It also stops if the loss is infinite or NaN, or if 50 updates in a row are
            skipped.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Smith 2017, sec. 3.3, https://arxiv.org/abs/1506.01186

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.random.normal(size=(64, 8)), np.random.normal(size=(64, 1))
        >>> curve = kattn.callbacks.LearningRateFinder(steps=50).run(model, x, y, batch_size=16)
        >>> model.optimizer.learning_rate = curve.valley
    """

    def __init__(self, low=1e-7, high=10.0, steps=100, *, smoothing=0.9, stop_factor=4.0):
        check_positive(low=low)
        check_numbers(f"a finite number above low={low}", lambda x: x > low, high=high)
        check_integers(2, steps=steps)
        check_fractions(smoothing=smoothing)
        if stop_factor != math.inf:
            check_numbers("a number above 1", lambda x: x > 1, stop_factor=stop_factor)
        self.low, self.high, self.steps = float(low), float(high), steps
        self.smoothing, self.stop_factor = float(smoothing), float(stop_factor)

    def run(
        self,
        model,
        x=None,
        y=None,
        *,
        batch_size=None,
        callbacks=None,
        optimizer=None,
        **fit_arguments,
    ):
        """Train with growing rates and return the curve of the loss over the rate.

        Args:
            model: A compiled model that has been built.
            x: Input data, as for `model.fit`.
            y: Targets, as for `model.fit`.
            batch_size: Number of examples in a batch, as for `model.fit`. The best rate depends on
                it.
            callbacks: Callbacks that change the update, such as `GradientClipping`, or None.
            optimizer: Optimizer whose learning rate grows, or the name of the attribute of the
                model that holds it. None for `model.optimizer`.
            **fit_arguments: Other arguments of `model.fit`, except those that concern epochs and
                validation. `verbose` is 0 unless it is given.

        Returns:
            A `LearningRateCurve`.

        Raises:
            ValueError: If an argument about epochs or validation is given; if the model has no
                weights yet, no optimizer, or several; or if the loss is finite for fewer than two
                updates.
        """
        refused = {name: value for name, value in fit_arguments.items() if name in REFUSED}
        if refused:
            raise error(
                "The finder trains as long as it needs to, without validation: leave out "
                f"{', '.join(refused)}",
                **refused,
            )
        if not model.built:
            raise error(
                "The model must be built: give it an Input, or call it on a batch",
                model=model.name,
                built=False,
            )
        hook = hook_of(model, optimizer)
        accumulated = hook.optimizer.gradient_accumulation_steps or 1
        owners = [(rule, rule.last_owner) for rule in hook.rules]
        before = Snapshot(model)
        sweep = _Sweep(self, accumulated, optimizer)
        try:
            model.fit(
                x,
                y,
                batch_size=batch_size,
                epochs=(self.steps + PATIENCE) * accumulated,  # each has at least one batch
                callbacks=[*keras.tree.flatten(callbacks or []), sweep],
                **{"verbose": 0, **fit_arguments},
            )
        finally:
            before.restore(model)
            for rule in hook.rules:  # Keras calls no callback after an interruption
                rule.release()
                rule.owner = None
            for rule, owner in owners:  # they may go on with the state of the rule
                rule.last_owner = owner
        return sweep.curve()


class _Sweep(RuleCallback):
    """The callback that sets the rates and reads the losses of one run."""

    def __init__(self, finder, accumulated, optimizer):
        super().__init__(optimizer)
        self._finder = finder
        self._patience = PATIENCE * accumulated  # batches
        self._settled = finder.steps // 10
        self._points: list[tuple[float, float, float]] = []  # place, loss and smoothed loss
        self._sum = 0.0
        self._best = math.inf
        self._done = self._waited = 0  # updates, and batches since the last of them

    def signature(self):
        return ("learning_rate_finder",)

    def make_rule(self):
        return SweepRule()

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._start = int(self.hook.optimizer.iterations)
        finder = self._finder
        slope = math.log(finder.high / finder.low) / (finder.steps - 1)
        self.rule.start(self._start, finder.low, slope, finder.steps)

    def on_train_batch_begin(self, batch, logs=None):
        if not self._waited:
            self.model.reset_metrics()  # the logs hold a mean since then

    def on_train_batch_end(self, batch, logs=None):
        if "loss" not in (logs or {}):
            raise error("The logs of each batch must have the loss", logs=list(logs or {}))
        loss = float(logs["loss"])
        done = min(int(self.hook.optimizer.iterations) - self._start, self._finder.steps)
        self._waited += 1
        if not math.isfinite(loss) or (self._waited >= self._patience and done == self._done):
            self.model.stop_training = True
        elif done > self._done:
            self._add((self._done + done - 1) / 2, loss)
            self._done, self._waited = done, 0

    def _add(self, place, loss):
        finder = self._finder
        self._sum = finder.smoothing * self._sum + (1 - finder.smoothing) * loss
        smoothed = self._sum / (1 - finder.smoothing ** (len(self._points) + 1))
        self._points.append((place, loss, smoothed))
        is_over = place >= finder.steps - 1
        if place >= self._settled:
            self._best = min(self._best, smoothed)
            # The loss may be negative.
            limit = self._best + (finder.stop_factor - 1) * abs(self._best)
            is_over = is_over or smoothed > limit
        if is_over:
            self.model.stop_training = True

    def curve(self):
        """Return the `LearningRateCurve` of the run."""
        if len(self._points) < 2:
            raise error(
                "The loss must be finite for at least two updates, from the lowest rate on",
                low=self._finder.low,
                losses=[loss for _, loss, _ in self._points],
            )
        places, losses, smoothed = np.array(self._points).T
        finder = self._finder
        rates = finder.low * (finder.high / finder.low) ** (places / (finder.steps - 1))
        first = int(np.searchsorted(places, self._settled))
        return LearningRateCurve(rates, losses, smoothed, min(first, len(rates) - 2))
