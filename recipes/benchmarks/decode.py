"""What does one more token cost against a cache, beside KerasHub's layer and no cache at all?

Task    One layer with its projections, C=512, N=8 heads of D=64, float32: one new step of each of
        B sequences against L steps, itself among them. `full`: kattn's KVCache, of all L steps;
        `window 256`: its RingCache, of the last 256.
Peers   keras-hub: keras_hub.layers.CachedMultiHeadAttention with a cache of L steps, the window as
        a mask. keras: keras.layers.MultiHeadAttention over all L steps again, whose last row is
        the token; left out where its scores may need 8 GiB, at L=4096, B=16.
Method  32 steps, at positions L - 32 to L - 1, from the same filled cache: the step compiled with
        the cache donated (JAX), as a tf.function, eager without gradients (PyTorch), and called in
        a loop that hands the cache on. The sides in turns in one process, each once before;
        medians over the turns of ms per token, and the median of the turns' ratios. A case takes
        three turns at least, and no more once it has taken 6 s. Before that, both sides, with the
        same weights, must give the same outputs. Memory: what the cache and the loop need, as in
        attention.py, of the longest sequences only. With 8 s, a whole
        run took 7 minutes on JAX, 6 on PyTorch and 10 on TensorFlow.
Needs   pip install keras-hub==0.32.0. On JAX and PyTorch then pip uninstall tensorflow
        tensorflow-text: it works without, and imports all of TensorFlow where it finds it.
Run     python -m recipes.benchmarks.decode --backend jax
        python -m recipes.benchmarks.decode --backend jax --only "L=1024, B=1," --json jax.json
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from recipes import harness
from recipes.benchmarks import memory, records, turns

WIDTH, HEADS, WINDOW = 512, 8, 256
TOKENS = 32  # decoded by one run
RERUNS = 1  # of the layer without a cache, which takes a hundred times as long
FEWEST_TURNS, SECONDS = 3, 6.0  # of a case: turns that it takes, and time after which it ends
CACHES = ("full", f"window {WINDOW}")
PEERS = ("keras-hub", "keras")
MOST_SCORES = 2**30  # that a layer without a cache may have to hold


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time the decoding of kattn's SelfAttention beside its peers."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 7  # how often each side is timed, at most
    steps: tuple[int, ...] = (256, 1024, 4096)  # L
    batches: tuple[int, ...] = (1, 16)  # B
    memory: bool = True  # whether to measure the memory of the longest, in processes of its own
    json: Path | None = None  # a file for the records
    measure: str = ""  # for itself: the case and side whose memory this process measures


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    steps: int
    batch: int
    cache: str
    peer: str

    def __str__(self) -> str:
        return f"L={self.steps}, B={self.batch}, {self.cache}"


def cases(settings: Settings) -> list[Case]:
    """All cases that `--only` lets through.

    Raises:
        ValueError: If a number of steps is not more than those that are decoded.
    """
    if min(settings.steps) <= TOKENS:
        raise ValueError(f"steps must be more than TOKENS={TOKENS}: steps={settings.steps}")
    found = [
        Case(steps, batch, cache, peer)
        for peer in PEERS
        for steps in settings.steps
        for batch in settings.batches
        for cache in CACHES
        if peer != "keras" or batch * HEADS * steps**2 <= MOST_SCORES
    ]
    return [case for case in found if re.search(settings.only, f"{case}, {case.peer}")]


class Side(NamedTuple):
    """One way to decode.

    Args:
        layer: Its weights are set.
        step: `step(x, state)` gives `(y, state)`, y `(B, 1, C)`.
        state: NumPy arrays and integers: what the first step gets.
        inputs: NumPy arrays, one for each step.
        positions: Of the outputs.
    """

    layer: Any
    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    inputs: list[np.ndarray]
    positions: list[int]


class Problem:
    """The numbers that both sides of a case share."""

    def __init__(self, case: Case):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(case.batch, case.steps, WIDTH)).astype("float32")
        self.kernels = (rng.normal(size=(4, WIDTH, WIDTH)) / WIDTH**0.5).astype("float32")
        self.biases = (0.1 * rng.normal(size=(4, WIDTH))).astype("float32")
        self.positions = list(range(case.steps - TOKENS, case.steps))
        self.tokens = [self.x[:, t : t + 1] for t in self.positions]

    def filled(self, part: int) -> np.ndarray:
        """`(B, L, N, D)`: keys (1) or values (2), zeros from the first token that is decoded on."""
        y = self.x @ self.kernels[part] + self.biases[part]
        y[:, self.positions[0] :] = 0.0
        return y.reshape(*y.shape[:2], HEADS, WIDTH // HEADS)

    def build_keras(self, layer: Any) -> None:
        """Build a layer that keeps its weights as Keras's MultiHeadAttention does."""
        layer.build(self.x.shape, self.x.shape)
        *inner, output = self.kernels
        inner = [kernel.reshape(WIDTH, HEADS, -1) for kernel in inner]
        kernels = [*inner, output.reshape(HEADS, -1, WIDTH)]
        biases = [*self.biases[:3].reshape(3, HEADS, -1), self.biases[3]]
        layer.set_weights([w for pair in zip(kernels, biases, strict=True) for w in pair])


def make_ours(case: Case, problem: Problem) -> Side:
    """Kattn's layer; its caches are `(B, N, L, D)`."""
    from kattn.layers import SelfAttention
    from kattn.ops import RingCache

    is_full = case.cache == "full"
    layer = SelfAttention(HEADS, causal=True, window=None if is_full else WINDOW)
    layer.build(problem.x.shape)
    qkv, output = np.concatenate(problem.kernels[:3], axis=-1), problem.kernels[3]
    layer.set_weights([qkv, problem.biases[:3].ravel(), output, problem.biases[3]])
    first = problem.positions[0]
    length: np.ndarray = np.full(case.batch, first, "int32")
    # A ring at L = 256, too, as of a user who will go on.
    empty = layer.init_cache(case.batch, case.steps if is_full else max(case.steps, WINDOW + 1))
    parts = [np.moveaxis(problem.filled(part), 1, 2) for part in (1, 2)]
    if isinstance(empty, RingCache):
        parts = [_as_ring(part, first) for part in parts]
    state = type(empty)(*(np.ascontiguousarray(part) for part in parts), length)
    if [x.shape for x in state] != [tuple(x.shape) for x in empty]:
        raise ValueError(
            "The cache filled here must be of the shapes that init_cache makes: "
            f"filled={[x.shape for x in state]}, made={[tuple(x.shape) for x in empty]}"
        )
    return Side(layer, layer.decode, state, problem.tokens, problem.positions)


def _as_ring(part: np.ndarray, length: int) -> np.ndarray:
    """`(B, N, L, D)` to `(B, N, W, D)`: step p, of the last W before `length`, in slot p mod W."""
    ring = np.zeros((*part.shape[:2], WINDOW, part.shape[3]), part.dtype)
    last = np.arange(max(length - WINDOW, 0), length)
    ring[:, :, last % WINDOW] = part[:, :, last]
    return ring


def make_keras_hub(case: Case, problem: Problem) -> Side:
    """KerasHub's layer; its cache is `(B, 2, L, N, D)`; the caller counts the steps."""
    import keras
    import keras_hub

    layer = keras_hub.layers.CachedMultiHeadAttention(HEADS, WIDTH // HEADS)
    problem.build_keras(layer)

    def step(x: Any, state: Any) -> tuple[Any, Any]:
        cache, position = state
        places = keras.ops.arange(case.steps, dtype="int32")[None, None]
        mask = places <= position
        if case.cache != "full":
            mask = keras.ops.logical_and(mask, places > position - WINDOW)
        y, cache = layer(x, x, attention_mask=mask, cache=cache, cache_update_index=position)
        return y, (cache, position + 1)

    cache = np.stack([problem.filled(1), problem.filled(2)], axis=1)
    state = (cache, problem.positions[0])
    return Side(layer, step, state, problem.tokens, problem.positions)


def make_keras(case: Case, problem: Problem) -> Side:
    """Keras's layer, over the whole sequence for its last step."""
    import keras

    window = None if case.cache == "full" else WINDOW
    layer = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, sliding_window=window)
    problem.build_keras(layer)

    def step(x: Any, state: Any) -> tuple[Any, Any]:
        return layer(x, x, use_causal_mask=True)[:, -1:], state

    return Side(layer, step, (), [problem.x] * RERUNS, [case.steps - 1] * RERUNS)


SIDES = {"kattn": make_ours, "keras-hub": make_keras_hub, "keras": make_keras}


class Decoder:
    """A side, compiled where that is usual: `start`, then `run`."""

    def __init__(self, side: Side, backend: str):
        compilers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
        self.side = side
        self.step, self.place = compilers[backend](side)
        self.inputs = [self.place(x) for x in side.inputs]

    def start(self) -> Any:
        """The first state anew: the steps write over it, or may."""
        return self.place(self.side.state)

    def run(self, state: Any) -> list[Any]:
        """The output of each step, all computed."""
        import keras

        outputs = []
        for x in self.inputs:
            y, state = self.step(x, state)
            outputs.append(y)
        keras.ops.convert_to_numpy(outputs[-1])  # which waits for it
        return outputs

    def milliseconds(self) -> float:
        """For one token."""
        state = self.start()
        return turns.milliseconds(lambda: self.run(state)) / len(self.inputs)

    def outputs(self) -> dict[int, np.ndarray]:
        """Outputs in NumPy by their positions."""
        import keras

        outputs = [keras.ops.convert_to_numpy(y) for y in self.run(self.start())]
        return dict(zip(self.side.positions, outputs, strict=True))


def _jax(side: Side) -> tuple[Callable, Callable]:
    import jax
    import keras

    variables = side.layer.variables
    weights = [variable.value for variable in variables]

    def step(weights: Any, x: Any, state: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return side.step(x, state)

    def place(tree: Any) -> Any:
        # Copied: JAX may else use NumPy's memory, which it cannot give away.
        return jax.block_until_ready(jax.tree.map(lambda x: jax.numpy.array(x, copy=True), tree))

    shapes = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, side.state))
    function = jax.jit(step, donate_argnums=2)
    compiled = function.lower(weights, side.inputs[0], shapes).compile()
    return lambda x, state: compiled(weights, x, state), place


def _tensorflow(side: Side) -> tuple[Callable, Callable]:
    import tensorflow as tf

    def spec(x: Any) -> Any:
        x = np.asarray(x, None if isinstance(x, np.ndarray) else "int32")
        return tf.TensorSpec(x.shape, x.dtype)

    specs = (spec(side.inputs[0]), tf.nest.map_structure(spec, side.state))
    function = tf.function(side.step, input_signature=specs)
    function.get_concrete_function()
    return function, lambda tree: tf.nest.map_structure(tf.constant, tree)


def _torch(side: Side) -> tuple[Callable, Callable]:
    import keras
    import torch

    device = keras.ops.convert_to_tensor(0.0).device

    def place(tree: Any) -> Any:
        if isinstance(tree, tuple):
            parts = [place(x) for x in tree]
            return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
        return torch.tensor(tree, device=device) if isinstance(tree, np.ndarray) else tree

    return torch.no_grad()(side.step), place


def make(name: str, case: Case, problem: Problem, backend: str) -> Decoder:
    """A side of a case, ready to run."""
    return Decoder(SIDES[name](case, problem), backend)


def check_equal(case: Case, ours: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> None:
    """Raises ValueError unless outputs at the same positions are equal to 1e-4 of the largest."""
    shared = sorted(ours.keys() & theirs.keys())
    a, b = (np.array([outputs[position] for position in shared]) for outputs in (ours, theirs))
    if not shared or a.shape != b.shape:
        raise ValueError(
            f"Both sides must give the same steps: case={case}, peer={case.peer}, "
            f"positions={shared}, kattn={a.shape}, theirs={b.shape}"
        )
    from kattn.backend import devices

    difference, largest = float(np.abs(a - b).max()), float(np.abs(b).max())
    tolerance = 1e-4 if len(devices()) == 1 else 1e-3  # products on GPUs may have TF32's 10 bits
    if not difference <= tolerance * largest:  # nor NaN
        raise ValueError(
            f"Both sides must give the same outputs to {tolerance:.0e}: case={case}, "
            f"peer={case.peer}, difference={difference:.3g}, largest={largest:.3g}"
        )


def measure_times(case: Case, settings: Settings, backend: str) -> dict[str, Any]:
    """Medians of ms per token over turns, and the median ratio."""
    problem = Problem(case)
    sides = {name: make(name, case, problem, backend) for name in ("kattn", case.peer)}
    check_equal(case, *(side.outputs() for side in sides.values()))
    per_token = {name: side.milliseconds for name, side in sides.items()}
    times = turns.in_turns(per_token, settings.turns, fewest=FEWEST_TURNS, seconds=SECONDS)
    return turns.compared(*times.values(), digits=4)


def extra_memory(name: str, case: Case, backend: str) -> float:
    """MiB that the cache and one run need beyond what stood there before them."""
    short = dataclasses.replace(case, steps=TOKENS + 1, batch=1)
    make(name, short, Problem(short), backend).outputs()  # what a first call alone allocates
    decoder = make(name, case, Problem(case), backend)
    return memory.extra(lambda: decoder.run(decoder.start()))


@functools.cache
def extra_memory_elsewhere(name: str, case: Case, backend: str) -> float:
    """`extra_memory` in a process of its own, measured once for each side and case."""
    module = "recipes.benchmarks.decode"
    return memory.elsewhere(module, backend, name, dataclasses.asdict(case))


def measure(case: Case, settings: Settings, backend: str) -> dict[str, Any]:
    """One record."""
    record: dict[str, Any] = {"backend": backend, "case": str(case), "peer": case.peer}
    record |= measure_times(case, settings, backend)
    record |= {"kattn_mib": None, "peer_mib": None}
    is_longest = case.steps == max(settings.steps)
    if settings.memory and is_longest and memory.is_measurable():
        ours = dataclasses.replace(case, peer="")  # the same beside any peer
        record["kattn_mib"] = round(extra_memory_elsewhere("kattn", ours, backend))
        record["peer_mib"] = round(extra_memory_elsewhere(case.peer, case, backend))
    return record


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    if settings.measure:
        name, fields = json.loads(settings.measure)
        print(extra_memory(name, Case(**fields), backend))
        return
    found = []
    columns = ("case", "peer", "kattn_ms", "peer_ms", "ratio", "kattn_mib", "peer_mib")
    records.print_head(columns)
    for case in cases(settings):
        found.append(measure(case, settings, backend))
        records.print_row(found[-1], columns)
    if settings.json:
        records.write(settings.json, found, backend, "keras-hub")


if __name__ == "__main__":
    main()
