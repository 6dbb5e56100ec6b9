"""What does a training step with attention layers cost, beside Keras's own layer?

Task    A model of four blocks x + attention(LayerNormalization(x)), with Adam and mean squared
        error: batch 8, C=128, N=4 heads of D=32, T=64 and T=256, float32. `fit` is a fit of 5
        batches without callbacks, `train_on_batch` 5 calls with one batch; ms of one step.
Peer    The same model of keras.layers.MultiHeadAttention. It mixes by the same softmax as
        SelfAttention, CrossAttention, MultiHeadAttention and SelfAttention2D (on maps of 8 x 8 and
        16 x 16). The others do other work: rotary positions are turned besides,
        DifferentialAttention has two maps of weights, LinearAttention has no softmax, and
        GatedLinearAttention, always causal, stands beside a causal peer.
Remat   With --remat instead: one step at T=4096, batch 1, with the layers made within
        keras.RematScope, beside the same model without, and the extra memory of both. A
        TransformerDecoderBlock stands there besides, whose `remat=True` is the same.
Method  The two sides in turns in one process, each run once before; medians and quartiles over the
        turns, and those of the turns' ratios. A case takes three turns at least, and no more once
        it has taken 3 s. Memory: as in attention.py, of the first two steps of a process of its
        own, what compiles them included: TensorFlow keeps what a step has freed for the next one.
Run     python -m recipes.benchmarks.training_step --backend jax
        python -m recipes.benchmarks.training_step --backend jax --remat
        python -m recipes.benchmarks.training_step --backend jax --only "^SelfAttention, T=64"
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from recipes import harness
from recipes.benchmarks import memory, records, turns

BLOCKS, WIDTH, HEADS = 4, 128, 4
FEWEST_TURNS, SECONDS = 3, 3.0  # of a case: turns that it takes, and time after which it ends
LAYERS = (
    "SelfAttention",
    "SelfAttention with RotaryEmbedding",
    "CrossAttention",
    "MultiHeadAttention",
    "SelfAttention2D",
    "DifferentialAttention",
    "LinearAttention",
    "GatedLinearAttention",
)
BLOCK = "TransformerDecoderBlock"  # with --remat only: Keras has no peer of it
WAYS = ("fit", "train_on_batch")
PEERS = ("keras", "no RematScope")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time training steps with kattn's layers beside those with Keras's."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 9  # how often each side is timed, at most
    steps: tuple[int, ...] = (64, 256)  # T
    batches: int = 5  # of a fit, and calls of train_on_batch
    remat: bool = False  # whether to measure keras.RematScope instead
    remat_steps: int = 4096  # T with --remat
    memory: bool = True  # whether to measure memory with --remat, in processes of its own
    json: Path | None = None  # a file for the records
    measure: str = ""  # for itself: the case and side whose memory this process measures


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    layer: str
    steps: int
    batch: int
    way: str
    peer: str = PEERS[0]

    def __str__(self) -> str:
        return f"{self.layer}, T={self.steps}, B={self.batch}, C={WIDTH}, N={HEADS}, {self.way}"

    @property
    def is_map(self) -> bool:
        """Whether the T steps are the cells of a square map."""
        return self.layer == "SelfAttention2D"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of an item."""
        side = math.isqrt(self.steps)
        return (side, side, WIDTH) if self.is_map else (self.steps, WIDTH)


def cases(settings: Settings) -> list[Case]:
    """All cases that `--only` lets through.

    Raises:
        ValueError: If a number of steps is not a square, as those of a map must be.
    """
    steps = (settings.remat_steps,) if settings.remat else settings.steps
    for each in steps:
        if math.isqrt(each) ** 2 != each:
            raise ValueError(f"steps must be squares, for the maps: steps={each}")
    batch, ways, peer = (1, WAYS[1:], PEERS[1]) if settings.remat else (8, WAYS, PEERS[0])
    layers = (*LAYERS, BLOCK) if settings.remat else LAYERS
    found = [
        Case(layer, each, batch, way, peer) for layer in layers for each in steps for way in ways
    ]
    return [case for case in found if re.search(settings.only, str(case))]


def make_ours(case: Case) -> Callable[[Any, Any], Any]:
    """Kattn's layer, as a function of a sequence and a context."""
    from kattn import layers

    key_dim = WIDTH // HEADS
    makers: dict[str, Callable[[], Any]] = {
        "SelfAttention with RotaryEmbedding": lambda: layers.SelfAttention(
            HEADS, position=layers.RotaryEmbedding()
        ),
        "MultiHeadAttention": lambda: layers.MultiHeadAttention(HEADS, key_dim),
        "SelfAttention2D": lambda: layers.SelfAttention2D(HEADS, key_dim, value_dim=key_dim),
        BLOCK: lambda: layers.TransformerDecoderBlock(
            layers.SelfAttention(HEADS, causal=True), layers.FeedForward(4 * WIDTH)
        ),
    }
    layer = makers[case.layer]() if case.layer in makers else getattr(layers, case.layer)(HEADS)
    if case.layer == "CrossAttention":
        return layer
    if case.layer == "MultiHeadAttention":
        return lambda x, _: layer(x, x)
    return lambda x, _: layer(x)


def make_keras(case: Case) -> Callable[[Any, Any], Any]:
    """Keras's layer, as a function of a sequence and a context."""
    import keras

    layer = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
    if case.layer == "CrossAttention":
        return layer
    causal = case.layer == "GatedLinearAttention"
    return lambda x, _: layer(x, x, use_causal_mask=causal)


def make_rematerialized(case: Case) -> Callable[[Any, Any], Any]:
    """Kattn's layer, whose activations are computed again for the gradient."""
    import keras

    with keras.RematScope():  # a layer asks for it when it is made
        return make_ours(case)


def build(make: Callable[[Case], Callable[[Any, Any], Any]], case: Case) -> Any:
    """A compiled model of four blocks."""
    import keras

    keras.utils.set_random_seed(0)
    context = inputs = x = keras.Input(case.sizes)
    for _ in range(BLOCKS):
        x = keras.layers.Add()([x, make(case)(keras.layers.LayerNormalization()(x), context)])
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    return model


def trainer(model: Any, case: Case, batches: int) -> Callable[[], float]:
    """A function that trains for so many steps and returns the milliseconds of one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, batches * case.batch, *case.sizes)).astype("float32")

    def fit() -> None:
        model.fit(x, y, batch_size=case.batch, verbose=0, shuffle=False)

    def train_on_batch() -> None:
        for _ in range(batches):
            model.train_on_batch(x[: case.batch], y[: case.batch])

    run = fit if case.way == "fit" else train_on_batch
    return lambda: turns.milliseconds(run) / batches


def sides(case: Case) -> dict[str, Callable[[Case], Callable[[Any, Any], Any]]]:
    """What makes the layers of the two sides."""
    if case.peer == "keras":
        return {"kattn": make_ours, "peer": make_keras}
    return {"kattn": make_rematerialized, "peer": make_ours}


def extra_memory(side: str, case: Case) -> float:
    """MiB that two steps need beyond the model that stood there before them."""
    step = trainer(build(sides(case)[side], case), case, batches=1)
    return memory.extra(lambda: [step(), step()])


def measure(case: Case, models: dict[str, Any], settings: Settings, backend: str) -> dict[str, Any]:
    """One record of the two models of a case."""
    batches = 1 if settings.remat else settings.batches
    trainers = {side: trainer(model, case, batches) for side, model in models.items()}
    for train in trainers.values():
        train()
    times = turns.in_turns(trainers, settings.turns, fewest=FEWEST_TURNS, seconds=SECONDS)
    record = {
        "backend": backend,
        "case": str(case),
        "peer": case.peer,
        **turns.compared(*times.values()),
        **turns.quartiles(*times.values()),
    }
    needed: dict[str, int | None] = dict.fromkeys(models)
    if settings.remat and settings.memory and memory.is_measurable():
        fields = dataclasses.asdict(case)
        elsewhere = functools.partial(memory.elsewhere, "recipes.benchmarks.training_step", backend)
        needed = {side: round(elsewhere(side, fields)) for side in models}
    return record | {f"{side}_mib": mib for side, mib in needed.items()}


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    if settings.measure:
        side, fields = json.loads(settings.measure)
        print(extra_memory(side, Case(**fields)))
        return
    found = []
    columns = ["case", "peer", "kattn_ms", "peer_ms", "ratio", "ratio_quartiles"]
    columns += ["kattn_mib", "peer_mib"] if settings.remat else []
    records.print_head(columns)
    built: tuple[Any, dict[str, Any]] = (None, {})
    for case in cases(settings):
        if built[0] != (case.layer, case.steps):  # one pair of models is trained in both ways
            models = {side: build(make, case) for side, make in sides(case).items()}
            built = (case.layer, case.steps), models
        found.append(measure(case, built[1], settings, backend))
        records.print_row(found[-1], columns)
    if settings.json:
        records.write(settings.json, found, backend)


if __name__ == "__main__":
    main()
