"""What spikes in the data do to a training: heights, recoveries, and their figures."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from recipes import harness
from recipes.harness.figures import BLUE, GREY

WINDOW = 10  # steps over which the training loss is smoothed
MARGIN = 0.02  # nats above the level before a spike that count as recovered


def check_spikes(spikes: Sequence[int], steps: int) -> None:
    """Raise ValueError unless there is room to measure before, between and after the spikes."""
    from kattn import arguments

    edges = (-1, *spikes, steps)
    if not spikes or any(b - a <= WINDOW for a, b in itertools.pairwise(edges)):
        raise arguments.error(
            f"`spikes` must be steps with at least {WINDOW} before, between and after them",
            spikes=spikes,
            steps=steps,
        )


def corrupted_batches(
    windows: np.ndarray, batch_size: int, seed: int, spikes: Sequence[int], weight: float
) -> Any:
    """One epoch of windows as inputs, targets and weights; at the steps in `spikes` corrupted.

    Args:
        windows: Windows of a text, integer, shape `(count, length + 1)`. Targets come one later.
        batch_size: Number of windows in a batch.
        seed: Draws the order of the windows.
        spikes: Steps, counted from 0, whose targets are permuted at random.
        weight: Weight of each target in these steps; elsewhere it is 1.
    """
    from kattn.data import EpochShuffled

    class Spiking(EpochShuffled):
        def __getitem__(self, index: int) -> Any:
            x, y, weights = super().__getitem__(index)
            if index in spikes:
                rng = np.random.default_rng(index)
                y = rng.permutation(y.ravel()).reshape(y.shape)
                weights = np.full_like(weights, weight)
            return x, y, weights

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "spikes": list(spikes)}

    x, y = windows[:, :-1], windows[:, 1:]
    return Spiking((x, y, np.ones(x.shape, "float32")), batch_size=batch_size, seed=seed)


@dataclass(frozen=True)
class Recovery:
    """What a spike did to the training loss."""

    height: float  # of the smoothed loss after it, in nats above the level before
    steps: int | None  # until the level is reached again; None: not before the next spike


def recoveries(losses: Sequence[float], spikes: Sequence[int]) -> list[Recovery]:
    """Height and recovery of each spike, without the losses of the corrupted steps themselves.

    The level before is the mean loss of `WINDOW` steps. After k steps the level is reached again if
    the mean of the next `WINDOW` steps is at most `MARGIN` above it.
    """
    measured = []
    for spike, end in zip(spikes, [*spikes[1:], len(losses)], strict=True):
        level = float(np.mean(losses[spike - WINDOW : spike]))
        after = np.asarray(losses[spike + 1 : end], "float64")
        smooth = np.convolve(after, np.full(WINDOW, 1 / WINDOW), "valid")
        reached = np.flatnonzero(smooth <= level + MARGIN)
        height = float(smooth.max()) - level
        measured.append(Recovery(height, int(reached[0]) if len(reached) else None))
    return measured


def in_words(spikes: Sequence[Recovery]) -> str:
    """Median and range of the steps until recovery, and how many spikes had none."""
    # One that never came is later than all others, in the median, too.
    every = sorted(math.inf if each.steps is None else each.steps for each in spikes)
    median, first, last = (
        "not" if math.isinf(x) else f"{x:g}"
        for x in (every[(len(every) - 1) // 2], every[0], every[-1])
    )
    missing = sum(each.steps is None for each in spikes)
    return f"{median} ({first} to {last})" + (
        f", not: {missing} of {len(spikes)}" if missing else ""
    )


def share_clipped(runs: Sequence[Mapping[str, Any]], spikes: Sequence[int]) -> str:
    """Percentage of clean steps whose gradients were made smaller."""
    shares = []
    for run in runs:
        norm, after = np.array(run["norms"]["norm"]), np.array(run["norms"]["clipped_norm"])
        shares.append(np.delete(after < norm * (1 - 1e-6), spikes).mean())
    return f"{100 * np.mean(shares):.0f}"


def about_spikes(spikes: Sequence[int], weight: float) -> str:
    """A remark that says what the spikes were, and what the columns of the table mean."""
    return (
        f"At steps {', '.join(map(str, spikes))} the batch is corrupted: targets permuted at "
        f"random, weight {weight:g}; the same in all runs. Height: the largest mean of {WINDOW} "
        f"training losses between the spike and the next, less the mean of the {WINDOW} before it. "
        f"Recovery: steps until the mean of the next {WINDOW} is at most {MARGIN} nats above that "
        "level; median and range over spikes and seeds, and how many did not recover before the "
        "next spike or the end. Changed: how many of the steps that are not corrupted had any "
        "gradient made smaller."
    )


def spikes_figure(
    results: harness.Results, titles: Mapping[str, str], control: str, spikes: Sequence[int]
) -> Figure:
    """The training loss around each spike, less the level before it, as mean over seeds.

    Args:
        results: Results with the losses of all steps, by kind, then by seed.
        titles: Titles of the kinds.
        control: Kind that was trained without spikes; it is drawn in grey everywhere.
        spikes: Steps at which the spikes were.
    """
    figure, axes = harness.panels(len(results), 5, 2.2, 1.8)
    ends = [*spikes[1:], len(results[control][0]["losses"])]
    for panel, (kind, runs) in zip(axes, results.items(), strict=True):
        for number, (spike, end) in enumerate(zip(spikes, ends, strict=True)):
            panel.plot(*_around(results[control], spike, end), color="black", alpha=0.35, lw=1)
            if kind == control:
                continue
            label = f"spike at {spike}"
            panel.plot(*_around(runs, spike, end), color=f"C{number}", label=label, lw=1)
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_title(titles[kind], fontsize=8)
    axes[1].legend(frameon=False, fontsize=6)
    figure.supxlabel("steps since the spike; grey: without spikes", fontsize=8)
    figure.supylabel("training loss - level before", fontsize=8)
    return figure


def _around(
    runs: Sequence[Mapping[str, Any]], spike: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Steps since the spike, and the mean loss in them without that of the spike itself."""
    losses = np.mean([run["losses"] for run in runs], 0)
    shown = losses[spike - WINDOW : end] - losses[spike - WINDOW : spike].mean()
    shown[WINDOW] = np.nan
    return np.arange(-WINDOW, end - spike), shown


def norms_figure(results: harness.Results, titles: Mapping[str, str]) -> Figure:
    """Norms of gradients step by step, before and after clipping, of seed 0."""
    figure, axes = harness.panels(len(results), 5, 2.2, 1.8)
    for panel, (kind, (run, *_)) in zip(axes, results.items(), strict=True):
        for key, colour in (("norm", GREY), ("clipped_norm", BLUE)):
            panel.plot(run["norms"][key], color=colour, linewidth=0.8)
        panel.set_yscale("log")
        panel.set_title(titles[kind], fontsize=8)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("norm of all gradients; blue: clipped", fontsize=8)
    return figure
