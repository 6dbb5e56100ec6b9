"""What does a small GPT cost to train and to write with, beside transformers and KerasHub?

Task    nanoGPT's two models of characters (V=65): `small` has 4 blocks, 4 heads, width 128, and
        trains on batches of 12 x 64 tokens; `large` has 6, 6, 384, and batches of 4 x 256. `train`:
        one step of AdamW on the cross-entropy of the next token, of a fit of 5 batches. `write`:
        256 new tokens behind a prompt of 16, the likeliest one each time, for one and for eight
        sequences. float32, without dropout.
Peers   transformers: its GPT2LMHeadModel in PyTorch (SDPA), with the same weights, trained by a
        plain loop with torch.optim.AdamW, writing by `generate`. Its logits must be kattn's to 1e-4
        before anything is timed. keras-hub: `generate` of a GPT2CausalLM of the same shape on the
        backend of kattn, with weights of its own.
Method  The two sides in turns in one process, each run once before; medians and quartiles over the
        turns, and those of the turns' ratios. A case takes three turns at least, and no more once
        it has taken 20 s. On TensorFlow kattn's model is compiled with `jit_compile=True`, and so
        is KerasHub's. `train`: ms of a step; `write`: ms of a new token of all sequences.
Needs   pip install transformers keras-hub==0.32.0, and PyTorch beside any backend.
Run     python -m recipes.benchmarks.language_model --backend jax
        python -m recipes.benchmarks.language_model --backend torch --only "^small, train"
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from recipes import harness
from recipes.benchmarks import records, turns

VOCABULARY, POSITIONS = 65, 512
PROMPT, NEW = 16, 256
BATCHES = 5  # of a fit
FEWEST_TURNS, SECONDS = 3, 20.0  # of a case: turns that it takes, and time after which it ends
PEERS = ("transformers", "keras-hub")


class Size(NamedTuple):
    """A model, and the batches that it trains on."""

    layers: int
    heads: int
    width: int
    batch: int
    steps: int


SIZES = {"small": Size(4, 4, 128, 12, 64), "large": Size(6, 6, 384, 4, 256)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time kattn's TransformerLM beside the GPT-2 of other libraries."""

    backend: Literal["tensorflow", "jax", "torch"] | None = None  # None: Keras's own choice
    only: str = ""  # a regular expression: cases whose name it matches
    turns: int = 9  # how often each side is timed, at most
    json: Path | None = None  # a file for the records


@dataclasses.dataclass(frozen=True)
class Case:
    """One task of one model, beside one peer."""

    name: str
    task: str
    batch: int
    peer: str

    @property
    def size(self) -> Size:
        """The shape of the model."""
        return SIZES[self.name]

    def __str__(self) -> str:
        return f"{self.name}, {self.task}, B={self.batch}, {self.peer}"


def cases(settings: Settings) -> list[Case]:
    """All cases that `--only` lets through."""
    every = []
    for name, size in SIZES.items():
        every.append(Case(name, "train", size.batch, "transformers"))
        every += [Case(name, "write", batch, peer) for batch in (1, 8) for peer in PEERS]
    return [case for case in every if re.search(settings.only, str(case))]


def tokens(rows: int, steps: int) -> np.ndarray:
    """Random tokens `(rows, steps)`."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, steps)).astype("int32")


# A side is a model with a way to run a case: a function that returns milliseconds.


def make_ours(case: Case) -> Any:
    """Kattn's model."""
    import keras

    from kattn import layers, models

    keras.utils.set_random_seed(0)
    size = case.size
    model = models.TransformerLM(
        VOCABULARY,
        size.layers,
        size.heads,
        size.width,
        position=layers.LearnedPositions(POSITIONS),
        activation="gelu_tanh",
    )
    model.build((None, None))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
    model.compile(optimizer, loss, jit_compile=jit_compile())
    return model


def jit_compile() -> bool | str:
    """Whether a model is compiled by XLA, which on a CPU Keras does for TensorFlow if asked to."""
    import keras

    return True if keras.backend.backend() == "tensorflow" else "auto"


def run_ours(model: Any, case: Case) -> Callable[[], float]:
    """Trains it by `fit`, or lets it write."""
    from kattn import generation

    if case.task == "write":
        prompts = tokens(case.batch, PROMPT)

        def write() -> None:
            generation.generate(model, prompts, NEW)

        return lambda: turns.milliseconds(write) / NEW

    x = tokens(BATCHES * case.batch, case.size.steps + 1)

    def fit() -> None:
        model.fit(x[:, :-1], x[:, 1:], batch_size=case.batch, verbose=0, shuffle=False)

    return lambda: turns.milliseconds(fit) / BATCHES


def make_transformers(case: Case) -> Any:
    """The GPT-2 of transformers."""
    import transformers

    size = case.size
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), None),
        attn_implementation="sdpa",
    )
    return transformers.GPT2LMHeadModel(config)


def names(model: Any) -> Iterator[tuple[str, str]]:
    """Paths of kattn's weights, and the names of the same weights in transformers."""
    yield "embedding/tokens/embeddings", "wte.weight"
    yield "embedding/position/table", "wpe.weight"
    norms = [("decoder/norm", "ln_f")]
    for i in range(model.options.num_layers):
        ours, theirs = f"decoder/block{i}", f"h.{i}"
        norms += [(f"{ours}/attention_residual/norm", f"{theirs}.ln_1")]
        norms += [(f"{ours}/feed_forward_residual/norm", f"{theirs}.ln_2")]
        for layer, name in (
            ("attention/qkv", "attn.c_attn"),
            ("attention/output", "attn.c_proj"),
            ("feed_forward/hidden", "mlp.c_fc"),
            ("feed_forward/output", "mlp.c_proj"),
        ):
            yield f"{ours}/{layer}/kernel", f"{theirs}.{name}.weight"
            yield f"{ours}/{layer}/bias", f"{theirs}.{name}.bias"
    for layer, name in norms:
        yield f"{layer}/gamma", f"{name}.weight"
        yield f"{layer}/beta", f"{name}.bias"


def copy_weights(ours: Any, theirs: Any) -> None:
    """Gives transformers' model the weights of kattn's; all of them, or ValueError."""
    import keras
    import torch

    weights = {w.path.partition("/")[2]: keras.ops.convert_to_numpy(w) for w in ours.weights}
    state = {f"transformer.{b}": torch.tensor(weights.pop(a)) for a, b in names(ours)}
    if weights:
        raise ValueError(f"Weights without a name in transformers: {sorted(weights)}")
    missing, superfluous = theirs.load_state_dict(state, strict=False)
    if superfluous or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"transformers has other weights: {missing=}, {superfluous=}")


def check_equal(ours: Any, theirs: Any, case: Case) -> None:
    """Raises ValueError unless both give the same logits to 1e-4."""
    import keras
    import torch

    x = tokens(2, case.size.steps)
    with torch.no_grad():
        wanted = theirs(torch.tensor(x).long().to(theirs.device)).logits.cpu().numpy()
        logits = keras.ops.convert_to_numpy(ours(x))
    difference = float(np.abs(logits - wanted).max())
    if not difference <= 1e-4 * np.abs(wanted).max():  # nor NaN
        raise ValueError(f"Both sides must give the same logits: {case=}, {difference=}")


def run_transformers(model: Any, case: Case) -> Callable[[], float]:
    """Trains it by a loop, or lets it write."""
    import torch

    if torch.cuda.is_available():
        model.to("cuda")
    if case.task == "write":
        prompts = torch.tensor(tokens(case.batch, PROMPT)).long().to(model.device)
        model.eval()
        options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}

        def write() -> None:
            model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)

        return lambda: turns.milliseconds(write) / NEW

    x = torch.tensor(tokens(BATCHES * case.batch, case.size.steps + 1)).long()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    model.train()

    def fit() -> None:
        for batch in x.split(case.batch):
            batch = batch.to(model.device)
            optimizer.zero_grad()
            logits = model(batch[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step()
        float(loss)

    return lambda: turns.milliseconds(fit) / BATCHES


def make_keras_hub(case: Case) -> Any:
    """KerasHub's GPT-2."""
    import keras_hub

    size = case.size
    backbone = keras_hub.models.GPT2Backbone(
        VOCABULARY, size.layers, size.heads, size.width, 4 * size.width, dropout=0.0,
        max_sequence_length=POSITIONS,
    )  # fmt: skip
    model = keras_hub.models.GPT2CausalLM(backbone)
    model.compile(sampler="greedy", jit_compile=jit_compile())
    return model


def run_keras_hub(model: Any, case: Case) -> Callable[[], float]:
    """Lets it write."""
    total = PROMPT + NEW
    prompts: np.ndarray = np.zeros((case.batch, total), "int32")
    prompts[:, :PROMPT] = tokens(case.batch, PROMPT)
    mask = np.arange(total) < PROMPT
    inputs = {"token_ids": prompts, "padding_mask": np.tile(mask, (case.batch, 1))}

    def write() -> None:
        model.generate(inputs, max_length=total, stop_token_ids=None)

    return lambda: turns.milliseconds(write) / NEW


RUNS = {"transformers": (make_transformers, run_transformers),
        "keras-hub": (make_keras_hub, run_keras_hub)}  # fmt: skip


def measure(case: Case, settings: Settings, backend: str) -> dict[str, Any]:
    """One record."""
    make, run = RUNS[case.peer]
    ours, theirs = make_ours(case), make(case)
    if case.peer == "transformers":
        copy_weights(ours, theirs)
        check_equal(ours, theirs, case)
    sides = {"kattn": run_ours(ours, case), case.peer: run(theirs, case)}
    for side in sides.values():
        side()
    times = turns.in_turns(sides, settings.turns, fewest=FEWEST_TURNS, seconds=SECONDS).values()
    return {
        "backend": backend,
        "case": str(case),
        **turns.compared(*times, digits=3),
        **turns.quartiles(*times, digits=3),
    }


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    backend = harness.choose_backend(settings.backend)
    columns = ("case", "kattn_ms", "peer_ms", "ratio", "ratio_quartiles")
    records.print_head(columns)
    results = []
    for case in cases(settings):
        results.append(measure(case, settings, backend))
        records.print_row(results[-1], columns)
    if settings.json:
        records.write(settings.json, results, backend, "torch", "transformers", "keras-hub")


if __name__ == "__main__":
    main()
