"""What recurrent layers, attention, and both together can remember.

Task    Associative recall (MQAR): pairs of a key and a value, then keys, at each of which its value
        is to be said. Or --task copy: ten symbols, to be said again after a delay. An LSTM, one
        layer of attention, an LSTM whose outputs attend to each other, a linear recurrence
        (RG-LRU) with attention to a window, a gated delta net, and a Transformer of two layers,
        with as many parameters each.
Data    Generated, as the code of Zoology (https://github.com/HazyResearch/zoology) and of TCN
        (https://github.com/locuslab/TCN) generate it. Each batch is drawn anew, with all numbers of
        pairs in it; sequences to validate and to test come from seeds that training does not use.
Score   Accuracy at each number of pairs; the figure "reach" shows how large the gradient of an
        output by an earlier input is, by the distance between them.
Run     python -m recipes.sequence_memory
        python -m recipes.sequence_memory --full --sweep-windows 8 16 32 48
        python -m recipes.sequence_memory --task copy --delay 200
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recipes import harness
from recipes.data import sequence_memory as memory
from recipes.harness import remembering

RECIPE = "sequence_memory"
VALIDATED, TESTED = 64, 512  # sequences of each level
SIZED = "lstm-attention"  # the other kinds have as many parameters as this one
SWEPT = "lstm-attention"  # the kind that --sweep-windows trains with other windows, too
UNSEEN = 2**32  # seed of the sequences to validate; those to test have the next one


@dataclass(frozen=True)
class Settings(harness.TrainingFlags):
    """Train networks of equal size to remember, and see which of them can."""

    task: Literal["recall", "copy"] = "recall"
    full: bool = False  # recall with 256 tokens, 64 steps, 16 pairs, by wider networks, for longer
    fill: Literal["blank", "random"] = "blank"  # what stands in recall between pairs and queries
    delay: int = 60  # steps over which to remember, of copy
    sweep_windows: tuple[int, ...] = ()  # trains an LSTM whose attention sees N steps for each N

    # What follows has other defaults for --full, see `presets`.
    vocabulary_size: int = 64  # tokens of recall
    length: int = 32  # steps of recall
    pairs: tuple[int, ...] = (2, 4, 8)  # numbers of pairs, of recall
    width: int = 64  # channels of the LSTM with attention; other widths follow from its parameters
    num_heads: int = 1  # heads of each attention layer
    batch_size: int = 64  # sequences in one training step
    epochs: int = 5  # each of epoch_steps steps, then the models are validated
    epoch_steps: int = 100  # training steps in an epoch
    learning_rate: float = 3e-3  # highest rate, reached after one epoch of warm-up; AdamW
    clip: str = "global_norm:1"  # gradients: MODE or MODE:THRESHOLD
    seeds: int = 1  # number of runs of each model, each with another seed

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        sizes = {"epoch_steps": self.epoch_steps, "width": self.width, "num_heads": self.num_heads}
        arguments.check_integers(1, **sizes)


def presets(given: Settings) -> Settings:
    """The defaults for the size of the task that the flags name."""
    options: dict[str, Any] = {"vocabulary_size": 256, "length": 64, "pairs": (4, 8, 16)}
    options |= {"width": 128, "epochs": 20}
    return Settings(task=given.task, full=given.full, **(options if given.full else {}))


def windows(settings: Settings) -> dict[str, tuple[str, int | None]]:
    """Mixer and window of each kind of model, by its name."""
    from recipes.harness.mixers import MIXERS

    swept = {f"{SWEPT}-w{window}": (SWEPT, window) for window in settings.sweep_windows}
    return {**{mixer: (mixer, None) for mixer in MIXERS}, **swept}


def title_of(settings: Settings, kind: str) -> str:
    """The title of a kind of model."""
    from recipes.harness.mixers import MIXERS

    mixer, window = windows(settings)[kind]
    return MIXERS[mixer].title + (f", window {window}" if window else "")


def network(task: memory.MemoryTask, settings: Settings, kind: str, width: int) -> Any:
    """A model of one width."""
    from recipes.harness import mixers

    mixer, window = windows(settings)[kind]
    sizes, heads = (task.vocabulary_size, task.length, width), settings.num_heads
    return mixers.network(mixer, *sizes, num_heads=heads, window=window)


def width_of(task: memory.MemoryTask, settings: Settings, kind: str) -> int:
    """The width at which a kind has as many parameters as `SIZED` has at that of the flag."""
    from kattn.profile import parameter_count
    from recipes.harness.mixers import MIXERS, width_of_size

    make = functools.partial(network, task, settings)
    wanted = parameter_count(lambda: make(SIZED, settings.width))
    step = settings.num_heads * MIXERS[windows(settings)[kind][0]].multiple
    return width_of_size(wanted, functools.partial(make, kind), step)


def build(
    task: memory.MemoryTask, settings: Settings, widths: Mapping[str, int], kind: str, seed: int
) -> Any:
    """A compiled model."""
    import keras

    from recipes.harness.losses import TokenCrossentropy

    keras.utils.set_random_seed(seed)
    model = network(task, settings, kind, widths[kind])
    model.compile(harness.adamw(settings.learning_rate, settings.weight_decay), TokenCrossentropy())
    return model


def evaluate(tests: Mapping[int, memory.Examples], model: Any) -> dict[str, float]:
    """The loss, and the accuracy of what was to be remembered at each level."""
    found = {}
    for level, (tokens, labels, is_counted) in tests.items():
        logits = harness.predict(model, tokens, VALIDATED)
        loss = harness.cross_entropy_and_accuracy(logits[is_counted], labels[is_counted])["loss"]
        found[level] = (loss, float((logits.argmax(-1) == labels)[labels != 0].mean()))
    return memory.scores(tests, found)


def prepare(settings: Settings) -> harness.Job:
    """Choose the task, and compare the models on it."""
    if settings.task == "copy":
        task: memory.MemoryTask = memory.CopyMemory(settings.delay)
    else:
        sizes = settings.vocabulary_size, settings.length, settings.pairs
        task = memory.AssociativeRecall(*sizes, is_filled=settings.fill == "random")
    held, tests = (
        memory.to_test(task, count, UNSEEN + i) for i, count in enumerate((VALIDATED, TESTED))
    )
    titles = {kind: title_of(settings, kind) for kind in windows(settings)}
    widths = {
        kind: width_of(task, settings, kind) for kind in settings.models or titles if kind in titles
    }
    make = functools.partial(build, task, settings, widths)
    seen = {kind: window for kind, (_, window) in windows(settings).items() if window}
    asked = remembering.Asked(task, tests, titles, seen, settings.seeds)
    about = (
        f"{settings.task}, {task.vocabulary_size} tokens, {task.length} steps, "
        f"{', '.join(map(str, task.levels))} {task.unit}"
    )
    hardest, size = task.levels[-1], settings.batch_size
    comparison = harness.Comparison(
        title=f"Sequence memory: {about}",
        about=about,
        titles=titles,
        scores=(
            harness.Score(
                f"accuracy_{hardest}",
                f"test accuracy at {hardest} {task.unit}",
                is_percentage=True,
                digits=2,
            ),
            harness.Score("loss", "test loss"),
        ),
        build=make,
        batches=lambda kind, seed: memory.batches(task, size, settings.epoch_steps, seed),
        validate=functools.partial(evaluate, held),
        test=functools.partial(evaluate, tests),
        tested=TESTED,
        references=lambda: {
            task.guess: memory.scores(tests, {n: task.guessed(n) for n in task.levels})
        },
        notes=(
            f"{about}; in each batch about as many sequences of each. An epoch has "
            f"{settings.epoch_steps} steps, whose sequences are drawn anew, from other seeds than "
            "those to validate and to test.",
            "Each kind has the width at which it has about as many parameters as "
            f"{titles[SIZED]} has with {settings.width} channels: "
            f"{', '.join(f'{titles[kind]} {width}' for kind, width in widths.items())}.",
        ),
        test_note=f"{TESTED} new sequences of each level are tested after training.",
        sections=functools.partial(remembering.sections, asked, make),
    )
    for kind in widths:  # so that sizes no layer takes, or too small a batch, are refused at once
        make(kind, 0)
        comparison.batches(kind, 0)
    return harness.compare(comparison, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments, presets), prepare)


if __name__ == "__main__":
    sys.exit(main())
