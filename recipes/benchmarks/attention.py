"""What does an attention layer cost, beside Keras's own and x-transformers'?

Task    One layer with its projections: B=1, C=512, N=8 heads of D=64, float32. Forward, and
        forward + backward (gradients for the input and every weight).
Peers   keras.layers.MultiHeadAttention; on torch also x_transformers.Attention(flash=True).
Method  The two sides in turns in one process, each called once before; medians over the turns,
        and the median of the turns' ratios. Extra memory: the highest resident size while the
        compiled function runs once, less that before it, in a process of its own.
Run     python -m recipes.benchmarks.attention --backend jax
        python -m recipes.benchmarks.attention --backend jax --only "T=4096" --json jax.json
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
from recipes.benchmarks import memory, records, turns

WIDTH, HEADS = 512, 8
MASKS = ("plain", "causal", "window 256", "padded", "dropout 0.1")
PASSES = ("forward", "forward + backward")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time kattn's SelfAttention beside its peers."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 7  # how often each side is timed
    steps: tuple[int, ...] = (256, 1024, 4096)  # T
    memory: bool = True  # whether to measure memory, in processes of its own
    json: Path | None = None  # a file for the records
    measure: str = ""  # for itself: the case and side whose memory this process measures


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    steps: int
    mask: str
    direction: str
    implementation: str = "auto"
    peer: str = "keras"

    def __str__(self) -> str:
        chosen = "" if self.implementation == "auto" else f", implementation={self.implementation}"
        return f"T={self.steps}, {self.mask}, {self.direction}{chosen}"


def cases(settings: Settings, backend: str) -> list[Case]:
    """All cases that `--only` lets through; the last two are for memory alone."""
    peers = ("keras", "x-transformers") if backend == "torch" else ("keras",)
    found = [
        Case(steps, mask, direction, peer=peer)
        for peer in peers
        for steps in settings.steps
        for mask in MASKS
        for direction in PASSES
        if peer == "keras" or mask in ("plain", "causal")
    ]
    found += [Case(16384, "causal", PASSES[1], implementation="chunked", peer="none")]
    return [case for case in found if re.search(settings.only, f"{case}, {case.peer}")]


def make_ours(case: Case) -> tuple[Any, Callable]:
    """Kattn's layer and its call."""
    from kattn.layers import SelfAttention

    layer = SelfAttention(
        HEADS,
        causal=case.mask in ("causal", "window 256"),
        window=256 if case.mask == "window 256" else None,
        dropout=0.1 if case.mask == "dropout 0.1" else 0.0,
        implementation=case.implementation,
        seed=0,
    )
    training, mask = case.mask == "dropout 0.1", padding(case)
    return layer, lambda x: layer(x, mask=mask, training=training)


def make_keras(case: Case) -> tuple[Any, Callable]:
    """Keras's layer and its call."""
    import keras

    layer = keras.layers.MultiHeadAttention(
        HEADS,
        WIDTH // HEADS,
        sliding_window=256 if case.mask == "window 256" else None,
        dropout=0.1 if case.mask == "dropout 0.1" else 0.0,
        seed=0,
    )
    causal, training = case.mask in ("causal", "window 256"), case.mask == "dropout 0.1"
    mask = padding(case)
    mask = None if mask is None else mask[:, None, :]
    return layer, lambda x: layer(
        x, x, attention_mask=mask, use_causal_mask=causal, training=training
    )


def make_x_transformers(case: Case) -> tuple[Any, Callable]:
    """x-transformers' layer and its call."""
    from x_transformers.x_transformers import Attention

    layer = Attention(
        WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, causal=case.mask == "causal", flash=True
    )

    def call(x: Any) -> Any:
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    return layer, call


SIDES = {"kattn": make_ours, "keras": make_keras, "x-transformers": make_x_transformers}


def padding(case: Case) -> Any:
    """`(1, T)`, the last eighth padded, or None."""
    if case.mask != "padded":
        return None
    import keras

    keep: np.ndarray = np.ones((1, case.steps), bool)
    keep[:, -case.steps // 8 :] = False
    return keras.ops.convert_to_tensor(keep)


def compile_side(side: str, case: Case, backend: str) -> Callable[[], Any]:
    """A function without arguments that runs the case to its end, compiled where that is usual."""
    layer, call = SIDES[side](case)
    x = np.random.default_rng(0).normal(size=(1, case.steps, WIDTH)).astype("float32")
    makers = {"jax": compile_jax, "tensorflow": compile_tensorflow, "torch": compile_torch}
    return makers[backend](layer, call, x, backward=case.direction == PASSES[1])


def compile_jax(layer: Any, call: Callable, x: np.ndarray, *, backward: bool) -> Callable:
    """A function that runs a call on x to its end, compiled by XLA, with gradients or without."""
    import jax
    import keras

    if not layer.built:
        layer.build(*[x.shape] * (1 if type(layer).__module__.startswith("kattn") else 2))
    weights = [v.value for v in layer.trainable_variables]
    others = [(v, v.value) for v in layer.non_trainable_variables]

    def loss(weights: Any, x: Any) -> Any:
        mapping = [*zip(layer.trainable_variables, weights, strict=True), *others]
        with keras.StatelessScope(state_mapping=mapping):
            return (call(x) ** 2).sum()

    function = jax.jit(jax.grad(loss, argnums=(0, 1)) if backward else loss)
    run, tensor = function.lower(weights, x).compile(), jax.numpy.asarray(x)
    return lambda: jax.block_until_ready(run(weights, tensor))


def compile_tensorflow(layer: Any, call: Callable, x: np.ndarray, *, backward: bool) -> Callable:
    """The same of TensorFlow: a graph."""
    import tensorflow as tf

    if not layer.built:
        layer.build(*[x.shape] * (1 if type(layer).__module__.startswith("kattn") else 2))
    tensor = tf.constant(x)

    @tf.function
    def forward(x: Any) -> Any:
        return tf.reduce_sum(call(x) ** 2)

    @tf.function
    def gradients(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = forward.python_function(x)
        return tape.gradient(loss, [x, *layer.trainable_variables])

    run = (gradients if backward else forward).get_concrete_function(tensor)
    return lambda: [y.numpy() for y in tf.nest.flatten(run(tensor))]


def compile_torch(layer: Any, call: Callable, x: np.ndarray, *, backward: bool) -> Callable:
    """The same of PyTorch, operation by operation."""
    import keras
    import torch

    tensor = keras.ops.convert_to_tensor(x).requires_grad_(backward)  # on the GPU if there is one
    if isinstance(layer, torch.nn.Module):
        layer.to(tensor.device)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            loss = (call(tensor) ** 2).sum()
        if backward:
            loss.backward()
            tensor.grad = None

    return run


def extra_memory(side: str, case: Case, backend: str) -> float:
    """MiB that one run needs beyond what stood there before it."""
    run = compile_side(side, case, backend)
    if backend == "torch":  # eager: weights are made by the first call; make it a short one
        compile_side(side, dataclasses.replace(case, steps=16), backend)()
    return memory.extra(run)


def extra_memory_elsewhere(side: str, case: Case, backend: str) -> float:
    """`extra_memory` in a process of its own."""
    module = "recipes.benchmarks.attention"
    return memory.elsewhere(module, backend, side, dataclasses.asdict(case))


def measure_times(case: Case, settings: Settings, backend: str) -> dict[str, Any]:
    """Medians in ms over turns, and the median ratio."""
    runs = {side: compile_side(side, case, backend) for side in ("kattn", case.peer)}
    for run in runs.values():
        run()
    sides = {side: functools.partial(turns.milliseconds, run) for side, run in runs.items()}
    return turns.compared(*turns.in_turns(sides, settings.turns).values())


def measure(case: Case, settings: Settings, backend: str) -> dict[str, Any]:
    """One record."""
    record: dict[str, Any] = {"backend": backend, "case": str(case), "peer": case.peer}
    record |= {"kattn_ms": None, "peer_ms": None, "ratio": None}
    if case.peer != "none":
        record |= measure_times(case, settings, backend)
    record |= {"kattn_mib": None, "peer_mib": None}
    if settings.memory and memory.is_measurable():
        record["kattn_mib"] = round(extra_memory_elsewhere("kattn", case, backend))
        if case.peer != "none":
            record["peer_mib"] = round(extra_memory_elsewhere(case.peer, case, backend))
    return record


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if settings.measure:
        side, fields = json.loads(settings.measure)
        print(extra_memory(side, Case(**fields), backend))
        return
    found = []
    columns = ("case", "peer", "kattn_ms", "peer_ms", "ratio", "kattn_mib", "peer_mib")
    records.print_head(columns)
    for case in cases(settings, backend):
        found.append(measure(case, settings, backend))
        records.print_row(found[-1], columns)
    if settings.json:
        records.write(settings.json, found, backend, "x-transformers")


if __name__ == "__main__":
    main()
