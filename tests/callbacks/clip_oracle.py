"""A whole training with clipped gradients in NumPy float64: y = (x A + b) C, SGD with momentum."""

import numpy as np


def start(rng):
    """Initial A `(3, 4)`, b `(4,)` and C `(4, 2)`, as float32 holds them."""
    shapes = {"body/kernel": (3, 4), "body/bias": (4,), "head/kernel": (4, 2)}
    return {
        name: rng.normal(size=shape).astype("float32").astype(float)
        for name, shape in shapes.items()
    }


def data(rng, steps, spikes=()):
    """`(steps, 3)` and `(steps, 2)`, float32; targets 10 times as large at spikes."""
    x = rng.normal(size=(steps, 3)).astype("float32")
    y = rng.normal(size=(steps, 2)).astype("float32")
    y[list(spikes)] *= 10
    return x, y


def gradients(w, x, y):
    """Of the mean square error of a batch."""
    hidden = x @ w["body/kernel"] + w["body/bias"]
    error = 2.0 * (hidden @ w["head/kernel"] - y) / y.size
    back = error @ w["head/kernel"].T
    return {"body/kernel": x.T @ back, "body/bias": back.sum(0), "head/kernel": hidden.T @ error}


def norm(arrays):
    return float(np.sqrt(sum(np.sum(a**2) for a in arrays)))


class Clipper:
    """One group of weights, clipped in one mode."""

    def __init__(
        self, mode, threshold, *, percent=10.0, window=1000, z=2.5, smoothing=0.97, warmup=25
    ):
        self.mode, self.threshold = mode, np.inf if threshold is None else threshold
        self.percent, self.window, self.z = percent, window, z
        self.smoothing, self.warmup = smoothing, warmup
        self.seen, self.mean, self.variance = [], None, None

    def __call__(self, weights, grads):
        t = self.threshold
        if self.mode == "value":
            return {n: np.clip(g, -t, t) for n, g in grads.items()}
        if self.mode == "norm":
            return {n: g * min(1.0, t / (norm([g]) + 1e-6)) for n, g in grads.items()}
        if self.mode == "agc":
            return {n: self.units(weights[n], g) for n, g in grads.items()}
        total = norm(grads.values())
        target = {"global_norm": lambda n: n, "autoclip": self.auto, "zclip": self.zclip}[self.mode]
        most = min(target(total), t)
        return {n: g * (most / (total + 1e-6) if total > most else 1.0) for n, g in grads.items()}

    def units(self, weight, grad):
        """Brock et al. 2021, eq. 3, column by column; a bias is one unit."""
        if weight.ndim == 1:
            return self.units(weight[:, None], grad[:, None])[:, 0]
        clipped = grad.copy()
        for i in range(weight.shape[1]):
            most = self.threshold * max(norm([weight[:, i]]), 1e-3)
            if norm([grad[:, i]]) > most:
                clipped[:, i] *= most / norm([grad[:, i]])
        return clipped

    def auto(self, total):
        """Seetharaman et al. 2020, algorithm 1, over the last `window` norms."""
        self.seen.append(total)
        return np.percentile(self.seen[-self.window :], self.percent)

    def zclip(self, total):
        """Kumar et al. 2025, algorithm 1."""
        if self.mean is None:
            self.seen.append(total)
            if len(self.seen) == self.warmup:
                self.mean, self.variance = np.mean(self.seen), np.var(self.seen)
            return total
        deviation = np.sqrt(self.variance)
        z = (total - self.mean) / (deviation + 1e-6)
        target = self.mean + self.z * deviation * (self.z / z) if z > self.z else total
        a = self.smoothing
        self.mean = a * self.mean + (1 - a) * target
        self.variance = a * self.variance + (1 - a) * (target - self.mean) ** 2
        return target


def simulate(weights, x, y, clippers, *, batch=1, rate=0.01, momentum=0.9, change=None):
    """Norms before and after clipping, step by step, and the final weights.

    Args:
        clippers: (weight names, Clipper) for each group; None leaves a group as it is.
        change: Called with the number of each step before it.
    """
    w = {n: a.copy() for n, a in weights.items()}
    velocity = {n: np.zeros_like(a) for n, a in w.items()}
    norms, clipped_norms = [], []
    for step in range(len(x) // batch):
        if change is not None:
            change(step)
        part = slice(step * batch, (step + 1) * batch)
        grads = gradients(w, x[part].astype(float), y[part].astype(float))
        norms.append(norm(grads.values()))
        for names, clipper in clippers:
            if clipper is not None:
                grads |= clipper(w, {n: grads[n] for n in names})
        clipped_norms.append(norm(grads.values()))
        for n, g in grads.items():
            velocity[n] = momentum * velocity[n] - rate * g
            w[n] = w[n] + velocity[n]
    return np.array(norms), np.array(clipped_norms), w
