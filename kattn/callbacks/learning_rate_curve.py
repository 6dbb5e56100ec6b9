"""The loss over the learning rate, and the learning rates that it suggests."""

import dataclasses

import numpy as np

from kattn.arguments import local_path


@dataclasses.dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """The loss over the learning rate, as `LearningRateFinder` measures it, and suggested rates.

    Suggestions leave out the first tenth of the steps, where the smoothed loss is the mean of few
    batches.

    Args:
        rates: Learning rates in increasing order, float64 array, shape `(points,)`.
        losses: Loss before the update with each rate, float64 array, shape `(points,)`.
        smoothed: Running mean of `losses`, corrected for its start from 0, float64 array, shape
            `(points,)`.
        first: Index of the first point that suggestions take into account.

    Example:
        >>> rates, losses = np.array([0.001, 0.01, 0.1, 1.0]), np.array([2.0, 1.5, 0.5, 3.0])
        >>> curve = kattn.callbacks.LearningRateCurve(rates, losses, smoothed=losses)
        >>> curve.suggestions
        {'valley': 0.01, 'steepest': 0.01, 'minimum': 0.01}

    Reference:
        Howard and Gugger, fastai, for the valley, https://docs.fast.ai/callback.schedule.html
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    first: int = 0

    @property
    def valley(self):
        """The rate at two thirds of the longest valley, a good learning rate to train with.

        The valley is the longest series of points each of which lies below the one before it;
        points between them may be left out.
        """
        losses = self.smoothed[self.first :]
        lengths: np.ndarray = np.ones(len(losses), int)
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
        """The rate at which the smoothed loss falls fastest, over the logarithm of the rate."""
        slopes = np.gradient(self.smoothed[self.first :], np.log(self.rates[self.first :]))
        return float(self.rates[self.first + slopes.argmin()])

    @property
    def minimum(self):
        """A tenth of the rate at which the smoothed loss is lowest."""
        return float(self.rates[self.first + self.smoothed[self.first :].argmin()] / 10)

    @property
    def suggestions(self):
        """A dict of the three suggested rates, by the names "valley", "steepest" and "minimum"."""
        return {name: getattr(self, name) for name in ("valley", "steepest", "minimum")}

    def plot(self, path):
        """Draw the curve and the suggested rates into an image file.

        Args:
            path: Path of the file. Its ending determines the format, such as ".png" or ".svg".

        Raises:
            ImportError: If Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as fault:
            raise ImportError(
                "LearningRateCurve.plot needs Matplotlib: pip install matplotlib"
            ) from fault
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="lightgray", label="loss")
        axes.plot(self.rates, self.smoothed, color="black", label="smoothed")
        for i, (name, rate) in enumerate(self.suggestions.items()):
            axes.axvline(rate, color=f"C{i}", linestyle="--", label=f"{name} {rate:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        figure.savefig(local_path(path=path))
