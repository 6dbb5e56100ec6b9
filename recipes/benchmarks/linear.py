"""From which length on is linear attention faster than softmax attention?

Task    One causal layer with its projections: B=1, C=512, N=8 heads of D=64, float32. Forward, and
        forward + backward (gradients for the input and every weight).
Sides   kattn.layers.SelfAttention, and beside it LinearAttention with elu + 1 and with 256 positive
        random features (performer), and GatedLinearAttention with gated and with fixed decays.
Method  All sides in turns in one process, each called once before; medians over the turns, and the
        median of the turns' ratios to softmax. The crossing is the smallest T from which on the
        linear form is faster at every length measured.
Run     python -m recipes.benchmarks.linear --backend jax
        python -m recipes.benchmarks.linear --backend jax --only "T=4096" --json jax.json
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from recipes import harness
from recipes.benchmarks import attention, records, turns

WIDTH, HEADS, FEATURES = attention.WIDTH, attention.HEADS, 256
PASSES = attention.PASSES
FORMS = ("elu", "performer", "gated", "fixed")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time kattn's linear attention beside its softmax attention."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 5  # how often each side is timed
    steps: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)  # T
    json: Path | None = None  # a file for the records


@dataclasses.dataclass(frozen=True)
class Case:
    """One length and direction, at which all forms are measured."""

    steps: int
    direction: str

    def __str__(self) -> str:
        return f"T={self.steps}, B=1, C={WIDTH}, N={HEADS}, causal, {self.direction}"


def cases(settings: Settings) -> list[Case]:
    """All cases that `--only` lets through."""
    found = [Case(steps, direction) for direction in PASSES for steps in settings.steps]
    return [case for case in found if re.search(settings.only, str(case))]


def make_layer(side: str) -> Any:
    """The layer of a side."""
    from kattn.layers import GatedLinearAttention, LinearAttention, SelfAttention

    if side == "softmax":
        return SelfAttention(HEADS, causal=True)
    if side in ("gated", "fixed"):
        return GatedLinearAttention(HEADS, decay=side)
    features = FEATURES if side == "performer" else None
    return LinearAttention(HEADS, feature_map=side, num_features=features, causal=True, seed=0)


def compile_side(side: str, case: Case, backend: str) -> Callable[[], Any]:
    """A function without arguments that runs the case to its end, compiled where that is usual."""
    layer = make_layer(side)
    x = np.random.default_rng(0).normal(size=(1, case.steps, WIDTH)).astype("float32")
    compilers = {
        "jax": attention.compile_jax,
        "tensorflow": attention.compile_tensorflow,
        "torch": attention.compile_torch,
    }
    return compilers[backend](layer, layer, x, backward=case.direction == PASSES[1])


def measure(case: Case, settings: Settings, backend: str) -> list[dict[str, Any]]:
    """A record for each linear form: medians in ms over turns, and the median ratio."""
    runs = {side: compile_side(side, case, backend) for side in ("softmax", *FORMS)}
    for run in runs.values():
        run()
    sides = {side: functools.partial(turns.milliseconds, run) for side, run in runs.items()}
    times = turns.in_turns(sides, settings.turns)
    softmax = times.pop("softmax")
    return [
        {
            "backend": backend,
            "case": f"{case}, {side}",
            "peer": "softmax",
            **turns.compared(found, softmax),
            "kattn_mib": None,
            "peer_mib": None,
        }
        for side, found in times.items()
    ]


def crossing(ratios: Mapping[int, float]) -> int | None:
    """The smallest length from which on every ratio is below 1; None if the last is not."""
    found = None
    for steps in sorted(ratios, reverse=True):
        if not ratios[steps] < 1.0:
            break
        found = steps
    return found


def crossings(measured: Sequence[tuple[Case, str, float]]) -> list[tuple[str, str, int | None]]:
    """(direction, form, crossing) of each direction and form in (case, form, ratio)."""
    ratios: dict[tuple[str, str], dict[int, float]] = {}
    for case, form, ratio in measured:
        ratios.setdefault((case.direction, form), {})[case.steps] = ratio
    return [(*key, crossing(found)) for key, found in ratios.items()]


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    found: list[dict[str, Any]] = []
    measured: list[tuple[Case, str, float]] = []
    columns = ("case", "kattn_ms", "peer_ms", "ratio")
    records.print_head(columns)
    for case in cases(settings):
        for form, record in zip(FORMS, measure(case, settings, backend), strict=True):
            found.append(record)
            measured.append((case, form, record["ratio"]))
            records.print_row(record, columns)
    for direction, form, steps in crossings(measured):
        at = "not faster at the longest T" if steps is None else f"faster from T={steps} on"
        print(f"{direction}, {form}: {at}")
    if settings.json:
        records.write(settings.json, found, backend)


if __name__ == "__main__":
    main()
