"""What do recurrent layers cost, beside Keras's LSTM and PyTorch's?

Task    One layer: batch 8, T=128 and T=1024, 256 channels in and out, float32, forward + backward
        (gradients for the input and every weight).
Peers   keras.layers.LSTM, beside MinGRU, RGLRU, SRU and GatedDeltaNet, which do other work: their
        gates do not see the whole state. keras.layers.RNN(LSTMCell), beside AttentionRNN of the
        same cell with dot scores: "after", where the state that comes out attends to all steps;
        "window", where the state that goes in attends to the last 32; and "before", where it
        attends to all. On PyTorch alone torch.nn.LSTM, beside the LSTM of Keras that a layer of
        kattn holds.
Method  A peer and all that stand beside it in turns in one process, each run once before; medians
        and quartiles over the turns, and those of the turns' ratios. Each takes three turns at
        least, and no more once they have taken 40 s. Memory: the extra peak of one call, in a
        process of its own, compiled before; at T=512, 1024 and 2048, to see how it grows, and on
        PyTorch without Keras's layers, which take minutes for it.
Run     python -m recipes.benchmarks.recurrent --backend jax
        python -m recipes.benchmarks.recurrent --backend torch --only "MinGRU, T=1024"
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from recipes import harness
from recipes.benchmarks import attention, memory, records, turns

BATCH, WIDTH, HEADS = 8, 256, 4
FEWEST_TURNS = 3  # of a peer and what stands beside it
SECONDS = 40.0  # after which no more turns are taken
PEERS = {
    "MinGRU": "keras LSTM",
    "RGLRU": "keras LSTM",
    "SRU": "keras LSTM",
    "GatedDeltaNet": "keras LSTM",
    **{f"AttentionRNN {form}": "keras RNN(LSTMCell)" for form in ("after", "window", "before")},
    "LSTM": "torch.nn.LSTM",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time kattn's recurrent layers beside those of Keras and PyTorch."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 15  # how often each side is timed, at most
    steps: tuple[int, ...] = (128, 1024)  # T
    memory_steps: tuple[int, ...] = (512, 1024, 2048)  # T at which memory is measured
    memory: bool = True  # whether to measure memory, in processes of its own
    json: Path | None = None  # a file for the records
    measure: str = ""  # for itself: the side and length whose memory this process measures


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer and length."""

    layer: str
    steps: int

    def __str__(self) -> str:
        return f"{self.layer}, T={self.steps}, B={BATCH}, C={WIDTH}, forward + backward"

    @property
    def peer(self) -> str:
        """What it is compared to."""
        return PEERS[self.layer]


def cases(settings: Settings, backend: str, steps: tuple[int, ...]) -> list[Case]:
    """All cases of these lengths that `--only` lets through."""
    layers = [layer for layer in PEERS if backend == "torch" or layer != "LSTM"]
    found = [Case(layer, each) for layer in layers for each in steps]
    return [case for case in found if re.search(settings.only, str(case))]


def make_layer(name: str) -> Any:
    """The layer of a side, and of a peer by its title."""
    import keras

    from kattn import layers
    from kattn.layers.recurrent.held_rnn import read_rnn

    def lstm() -> Any:
        return keras.layers.LSTM(WIDTH, return_sequences=True)

    def attending(**options: Any) -> Any:
        return layers.AttentionRNN(keras.layers.LSTMCell(WIDTH), "dot", **options)

    def cells() -> Any:
        return keras.layers.RNN(keras.layers.LSTMCell(WIDTH), return_sequences=True)

    makers: dict[str, Callable[[], Any]] = {
        "MinGRU": lambda: layers.MinGRU(WIDTH),
        "RGLRU": lambda: layers.RGLRU(HEADS),
        "SRU": lambda: layers.SRU(WIDTH),
        "GatedDeltaNet": lambda: layers.GatedDeltaNet(HEADS),
        "AttentionRNN after": lambda: attending(attend="after"),
        "AttentionRNN window": lambda: attending(causal=True, window=32),
        "AttentionRNN before": attending,
        "LSTM": lambda: read_rnn(lstm()),  # as every layer of kattn takes one in
        "keras LSTM": lstm,
        "keras RNN(LSTMCell)": cells,
    }
    return makers[name]()


def compile_side(name: str, steps: int, backend: str) -> Callable[[], Any]:
    """A function without arguments that runs a side to its end, compiled where that is usual."""
    x = np.random.default_rng(0).normal(size=(BATCH, steps, WIDTH)).astype("float32")
    if name == "torch.nn.LSTM":
        import torch

        layer = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
        return attention.compile_torch(layer, lambda x: layer(x)[0], x, backward=True)
    layer = make_layer(name)
    layer.build(x.shape)
    compilers = {
        "jax": attention.compile_jax,
        "tensorflow": attention.compile_tensorflow,
        "torch": attention.compile_torch,
    }
    return compilers[backend](layer, layer, x, backward=True)


def measure(found: list[Case], settings: Settings, backend: str) -> list[dict[str, Any]]:
    """A record of each case, all of one length and one peer: medians in ms, and of the ratios."""
    names = [found[0].peer, *(case.layer for case in found)]
    runs = {side: compile_side(side, found[0].steps, backend) for side in names}
    for run in runs.values():
        run()
    sides = {side: functools.partial(turns.milliseconds, run) for side, run in runs.items()}
    times = turns.in_turns(sides, settings.turns, fewest=FEWEST_TURNS, seconds=SECONDS)
    theirs = times.pop(found[0].peer)
    return [
        {
            "backend": backend,
            "case": str(case),
            "peer": case.peer,
            **turns.compared(times[case.layer], theirs),
            **turns.quartiles(times[case.layer], theirs),
            "kattn_mib": None,
            "peer_mib": None,
        }
        for case in found
    ]


def extra_memory(name: str, steps: int, backend: str) -> float:
    """MiB that one run needs beyond what stood there before it."""
    run = compile_side(name, steps, backend)
    if backend != "jax":  # weights are made, and kernels loaded, by a first, short one
        compile_side(name, 16, backend)()
    return memory.extra(run)


@functools.cache  # as several layers have one peer
def memory_elsewhere(name: str, steps: int, backend: str) -> int:
    """`extra_memory` in a process of its own."""
    return round(memory.elsewhere("recipes.benchmarks.recurrent", backend, name, steps))


def measure_memory(case: Case, backend: str) -> dict[str, Any]:
    """One record of the memory of both sides, each in a process of its own."""
    is_slow = backend == "torch" and case.peer.startswith("keras")
    ours = memory_elsewhere(case.layer, case.steps, backend)
    theirs = None if is_slow else memory_elsewhere(case.peer, case.steps, backend)
    record = {"backend": backend, "case": f"{case}, memory", "peer": case.peer}
    times = {"kattn_ms": None, "peer_ms": None, "ratio": None}
    return {**record, **times, "kattn_mib": ours, "peer_mib": theirs}


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if settings.measure:
        name, steps = json.loads(settings.measure)
        print(extra_memory(name, steps, backend))
        return
    found: list[dict[str, Any]] = []
    columns: tuple[str, ...] = ("case", "peer", "kattn_ms", "peer_ms", "ratio", "ratio_quartiles")
    records.print_head(columns)
    wanted = cases(settings, backend, settings.steps)
    for peer, steps in dict.fromkeys((case.peer, case.steps) for case in wanted):
        beside = [case for case in wanted if (case.peer, case.steps) == (peer, steps)]
        for record in measure(beside, settings, backend):
            found.append(record)
            records.print_row(record, columns)
    if settings.memory and memory.is_measurable():
        columns = ("case", "peer", "kattn_mib", "peer_mib")
        for case in cases(settings, backend, settings.memory_steps):
            found.append(measure_memory(case, backend))
            records.print_row(found[-1], columns)
    if settings.json:
        records.write(settings.json, found, backend)


if __name__ == "__main__":
    main()
