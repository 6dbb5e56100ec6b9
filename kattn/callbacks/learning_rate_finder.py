"""A range test: which learning rates train, found by training a little and putting all back."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from kattn.callbacks import training_state
from kattn.callbacks.optimizer_hook import Rule, RuleCallback, hook_of

REFUSED = (
    "epochs",
    "initial_epoch",
    "validation_data",
    "validation_split",
    "validation_steps",
    "validation_batch_size",
    "validation_freq",
)
PATIENCE = 50  # updates skipped in a row; a loss scale is halved 40 times at most before it is tiny


class LearningRateFinder:
    """Train with rates that grow, low (high / low)^(i / (steps - 1)), and put everything back.

    What follows is bit for bit as if the finder had not run: weights, batch statistics, seeds of
    layers, the optimizer, metrics, `model.history`, and the global generators of Python, NumPy and
    PyTorch are what they were, also if it is interrupted. Not put back are: data with an order of
    their own, such as generators and shuffled `tf.data`; what other callbacks keep (hand it new
    ones); numbers drawn without a seed from Keras's global generator. A copy of all variables is
    kept on the host meanwhile.

    The rate is set inside the compiled step, whatever rate or schedule the optimizer was built
    with. A point of the curve is one update: the mean loss of the batches whose gradients it
    accumulates, before it. With `steps_per_execution` a point is one execution: the mean loss, at
    the geometric mean of its rates.

    Args:
        low: Rate of the first update. Above 0.
        high: Rate of the last update. Above `low`.
        steps: Updates, 2 or more. Epochs are repeated as needed.
        smoothing: The weight of the past in the smoothed loss, in [0, 1). It lags by some
            1 / (1 - smoothing) steps, and so do suggestions: with 0.98 half of 100 steps.
        stop_factor: Stop early where the smoothed loss is above this many times its minimum so
            far (from a tenth of the steps on), above 1. It stops, too, where the loss is infinite
            or NaN, or where 50 updates in a row are skipped.

    Raises:
        ValueError: If an argument is out of its range.

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
        _check_number("low", low, 0 < _number(low) < math.inf, "a finite number above 0")
        is_above = low < _number(high) < math.inf
        _check_number("high", high, is_above, f"a finite number above low={low}")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 2:
            raise ValueError(f"steps must be a whole number of updates, 2 or more: steps={steps!r}")
        _check_number("smoothing", smoothing, 0 <= _number(smoothing) < 1, "a number in [0, 1)")
        is_above = _number(stop_factor) > 1
        _check_number("stop_factor", stop_factor, is_above, "a number above 1")
        self.low, self.high, self.steps = float(low), float(high), steps
        self.smoothing, self.stop_factor = float(smoothing), float(stop_factor)

    def run(self, model, x=None, y=None, *, batch_size=None, callbacks=None, **fit_arguments):
        """Find the curve of the loss over the rate.

        Args:
            model: A compiled model that has been built.
            x: As of `model.fit`.
            y: As of `model.fit`.
            batch_size: As of `model.fit`. The best rate depends on it.
            callbacks: For callbacks that change the update, such as `GradientClipping`.
            **fit_arguments: Other arguments of `model.fit`, but for those of epochs and validation.
                `verbose` is 0 unless given.

        Returns:
            A `LearningRateCurve`.

        Raises:
            ValueError: If an argument of epochs or validation is given, if the model has no
                weights yet or no optimizer or several, or if fewer than two losses are finite.
        """
        refused = {name: value for name, value in fit_arguments.items() if name in REFUSED}
        if refused:
            raise ValueError(
                "The finder trains as long as it needs, without validation: do not give "
                f"{', '.join(f'{name}={value!r}' for name, value in refused.items())}"
            )
        if not model.built:
            raise ValueError(f"The model must be built: model={model.name!r}, built=False")
        hook = hook_of(model)
        accumulated = hook.optimizer.gradient_accumulation_steps or 1
        owners = [(rule, rule.last_owner) for rule in hook.rules]
        before = _Snapshot(model)
        sweep = _Sweep(self, accumulated)
        try:
            model.fit(
                x,
                y,
                batch_size=batch_size,
                epochs=(self.steps + PATIENCE) * accumulated,  # of one batch at least
                callbacks=[*keras.tree.flatten(callbacks or []), sweep],
                **{"verbose": 0, **fit_arguments},
            )
        finally:
            before.restore(model)
            for rule in hook.rules:  # also after an interruption, which JAX's callbacks do not see
                rule.release()
                rule.owner = None
            for rule, owner in owners:  # who may go on with what the rule keeps
                rule.last_owner = owner
        return sweep.curve()


@dataclasses.dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """The loss over the learning rate, and the rates that it suggests.

    Suggestions leave out the first tenth of the steps, where the smoothed loss is of few batches.

    Args:
        rates: `(points,)` float64, growing.
        losses: `(points,)` float64; before the update of that rate.
        smoothed: `(points,)` float64; the running mean of `losses`, corrected for its start from 0.
        first: The first point that suggestions regard.

    Example:
        >>> rates, losses = np.array([0.001, 0.01, 0.1, 1.0]), np.array([2.0, 1.5, 0.5, 3.0])
        >>> curve = kattn.callbacks.LearningRateCurve(rates, losses, smoothed=losses)
        >>> curve.suggestions
        {'valley': 0.01, 'steepest': 0.01, 'minimum': 0.01}

    Reference:
        The valley is that of Howard and Gugger's fastai, https://docs.fast.ai/callback.schedule.html
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    first: int = 0

    @property
    def valley(self):
        """Two thirds along the longest valley: a good rate to train with.

        The valley is the longest series of points each of which lies below the one before it, other
        points left out.
        """
        losses = self.smoothed[self.first :]
        lengths = np.ones(len(losses), int)
        previous = np.full(len(losses), -1)
        for i, loss in enumerate(losses):
            above = np.where(losses[:i] > loss, lengths[:i], 0)
            if above.any():
                previous[i] = above.argmax()
                lengths[i] = 1 + above.max()
        start = end = int(lengths.argmax())
        while previous[start] >= 0:
            start = int(previous[start])
        return float(self.rates[self.first + start + 2 * (end - start) // 3])

    @property
    def steepest(self):
        """Where the smoothed loss falls fastest over the logarithm of the rate."""
        slopes = np.gradient(self.smoothed[self.first :], np.log(self.rates[self.first :]))
        return float(self.rates[self.first + slopes.argmin()])

    @property
    def minimum(self):
        """A tenth of the rate where the smoothed loss is least."""
        return float(self.rates[self.first + self.smoothed[self.first :].argmin()] / 10)

    @property
    def suggestions(self):
        """All three by name."""
        return {name: getattr(self, name) for name in ("valley", "steepest", "minimum")}

    def plot(self, path):
        """Draw the curve and the suggestions into an image file.

        Args:
            path: Of the file; its ending says which format, as of Matplotlib.

        Raises:
            ImportError: If Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "LearningRateCurve.plot needs Matplotlib: pip install matplotlib"
            ) from error
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="lightgray", label="loss")
        axes.plot(self.rates, self.smoothed, color="black", label="smoothed")
        for i, (name, rate) in enumerate(self.suggestions.items()):
            axes.axvline(rate, color=f"C{i}", linestyle="--", label=f"{name} {rate:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        figure.savefig(path)


class _Sweep(RuleCallback):
    """Sets the rates and reads the losses of one run."""

    def __init__(self, finder, accumulated):
        super().__init__()
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
        return _SweepRule()

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._start = int(hook_of(self.model).optimizer.iterations)
        finder = self._finder
        slope = math.log(finder.high / finder.low) / (finder.steps - 1)
        self.rule.start(self._start, finder.low, slope, finder.steps)

    def on_train_batch_begin(self, batch, logs=None):
        if not self._waited:
            self.model.reset_metrics()  # the logs hold a mean since then

    def on_train_batch_end(self, batch, logs=None):
        if "loss" not in (logs or {}):
            raise ValueError(f"The logs of a batch must hold the loss: logs={list(logs or {})}")
        loss = float(logs["loss"])
        done = min(int(hook_of(self.model).optimizer.iterations) - self._start, self._finder.steps)
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
            # A loss may be negative, too.
            limit = self._best + (finder.stop_factor - 1) * abs(self._best)
            is_over = is_over or smoothed > limit
        if is_over:
            self.model.stop_training = True

    def curve(self):
        if len(self._points) < 2:
            raise ValueError(
                "The loss must be finite for two updates at least, from the lowest rate on: "
                f"low={self._finder.low}, losses={[loss for _, loss, _ in self._points]}"
            )
        places, losses, smoothed = np.array(self._points).T
        finder = self._finder
        rates = finder.low * (finder.high / finder.low) ** (places / (finder.steps - 1))
        first = int(np.searchsorted(places, self._settled))
        return LearningRateCurve(rates, losses, smoothed, min(first, len(rates) - 2))


class _SweepRule(Rule):
    order = 5  # after schedules

    def build(self, hook):
        self._is_active = hook.add_variable((), "finder_is_active")
        self._low = hook.add_variable((), "finder_low")
        self._slope = hook.add_variable((), "finder_slope")
        self._start = hook.add_variable((), "finder_start", dtype="int32")
        self._steps = hook.add_variable((), "finder_steps", dtype="int32")

    def start(self, start, low, slope, steps):
        self._start.assign(start)
        self._steps.assign(steps)
        self._low.assign(low)
        self._slope.assign(slope)
        self._is_active.assign(1.0)

    def numbers(self, update):
        low, slope, start, steps = map(
            ops.convert_to_tensor, (self._low, self._slope, self._start, self._steps)
        )
        place = ops.cast(ops.minimum(update.step - start, steps - 1), "float32")
        is_active = ops.convert_to_tensor(self._is_active) > 0
        # Place 0 while it rests: a large one would give an infinite rate.
        place = ops.where(is_active, place, 0.0)
        rate = low * ops.exp(slope * place)
        return {"learning_rate": ops.where(is_active, rate, update.learning_rate)}

    def release(self):
        self._is_active.assign(0.0)


class _Snapshot:
    """What a training changes, as it was."""

    def __init__(self, model):
        variables = [*model.variables, *model.optimizer.variables]
        self._values = {id(v): _copy(v) for v in variables}
        self._metrics = {id(v): _copy(v) for v in _metrics_variables(model)}
        self._history = getattr(model, "history", None)
        self._stop_training = model.stop_training
        self._random = training_state.random_state()
        compiled = (getattr(model, name, None) for name in ("_compile_metrics", "_compile_loss"))
        self._unbuilt = [each for each in compiled if each is not None and not each.built]

    def restore(self, model):
        _assign([*model.variables, *model.optimizer.variables], self._values)
        model.reset_metrics()
        _assign(_metrics_variables(model), self._metrics)
        if self._history is not None:
            model.history = self._history
        elif getattr(model, "history", None) is not None:
            del model.history
        model.stop_training = self._stop_training
        if keras.backend.backend() != "tensorflow":
            # The first `fit` of a model draws an order of the data to make metrics: let it do so.
            for each in self._unbuilt:
                each.built = False
        training_state.set_random_state(self._random)


def _assign(variables, values):
    for variable in variables:
        if id(variable) in values:
            variable.assign(values[id(variable)])


def _copy(variable):
    return np.array(ops.convert_to_numpy(variable), copy=True)


def _metrics_variables(model):
    return [variable for metric in model.metrics for variable in metric.variables]


def _number(value):
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return value if is_number else math.nan


def _check_number(name, value, is_right, rule):
    if not is_right:
        raise ValueError(f"{name} must be {rule}: {name}={value!r}")
