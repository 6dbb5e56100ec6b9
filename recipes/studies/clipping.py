"""Which clipping of gradients? All of them on a text in which a few batches are corrupted.

Task    Learn text by characters with a small Transformer, under each way of clipping. A few
        batches, the same in every run, are corrupted (targets permuted, weight 100).
Data    The documentation of Python, as its standard library has it (`pydoc_data.topics`; the text
        depends on the version of Python), or --text FILE. The last tenth is held out. No network.
Result  3 seeds, on each of TensorFlow, JAX and PyTorch: spikes cost 1.0 nats of the validation loss
        (1.97 without them) where nothing is clipped, and most are not recovered from before the
        next. They cost nothing measurable with a global norm, ZClip or the skips of SpikeGuard;
        0.02 with AutoClip; 0.04 to 0.1 with norms of each weight, AGC or SpikeGuard going back, of
        which only the last is beyond chance on all three; 0.25 with values.
Cost    With the study of schedules: 4.1 (JAX) to 4.5 minutes (PyTorch) on two cores of an AMD EPYC
        that others used, too.
Run     python -m recipes.studies.clipping
        python -m recipes.studies.clipping --clip zclip agc --lr-find
        python -m recipes.studies.clipping --text tiny_shakespeare.txt
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import harness
from recipes.data.text import Text, load_text
from recipes.studies import spikes

RECIPE = "studies.clipping"
NONE, CLEAN = "none", "clean"
# The largest gradients without spikes have about these norms (1 to 2 of all together, up to 1.5 and
# numbers up to 0.2 in the embedding), so that it is the spikes that are clipped. Other ways have
# the defaults of `GradientClipping`.
THRESHOLDS = {"global_norm": 2.0, "norm": 1.0, "value": 0.05}
CLIPPINGS = {  # those next to each other that share a rule share a compiled model
    NONE: "none",
    "global_norm": "global norm, 2",
    "norm": "norm of each weight, 1",
    "value": "value, 0.05",
    "agc": "AGC, 0.01, head left out",
    "autoclip": "AutoClip, 10 %",
    "zclip": "ZClip, z 2.5",
    "spike_guard": "SpikeGuard, skips",
    "roll_back": "SpikeGuard, goes back",
}
TITLES = {CLEAN: "no spikes, no clipping", **CLIPPINGS}
LOOK = 10  # batches between the looks of the SpikeGuard that goes back


@dataclass(frozen=True)
class Settings(harness.RunFlags):
    """Compare ways of clipping gradients on a text with corrupted batches."""

    clip: tuple[str, ...] = tuple(CLIPPINGS)  # names of those to compare with no clipping
    lr_find: bool = False  # find the highest learning rate by a range test first
    text: Path | None = None  # a text file in UTF-8; None: the documentation of Python

    learning_rate: float = 3e-3  # highest rate; AdamW, a tenth of warm-up, a fifth of decay
    weight_decay: float = 0.01  # of AdamW; biases and gains do not decay
    steps: int = 300  # training steps
    batch_size: int = 8  # windows in one training step
    length: int = 64  # characters in a window
    width: int = 64  # width of the model
    blocks: int = 1  # number of Transformer blocks
    num_heads: int = 4  # heads of each attention layer
    spikes: tuple[int, ...] = (120, 170, 220)  # steps, counted from 0, whose batch is corrupted
    spike_weight: float = 100.0  # weight of each example in a corrupted batch

    def check(self) -> None:
        """Raise ValueError for a setting that nothing else would refuse in time."""
        from kattn import arguments

        super().check()
        for name in self.clip:
            arguments.check_choice(CLIPPINGS, clip=name)
        if not self.clip:
            raise arguments.error("`clip` must name at least one way of clipping", clip=self.clip)
        names = ("batch_size", "length", "width", "blocks", "num_heads")
        arguments.check_integers(1, **{name: getattr(self, name) for name in names})
        arguments.check_integers(10, steps=self.steps)
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise arguments.error(
                "`width` must be an even multiple of num_heads",
                width=self.width,
                num_heads=self.num_heads,
            )
        spikes.check_spikes(self.spikes, self.steps)

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of the clippings to train with, the baselines first."""
        return tuple(name for name in TITLES if name in {CLEAN, NONE, *self.clip})


def clip_callbacks(name: str) -> list[Any]:
    """The callbacks for a way of clipping; the first one records the norms of gradients."""
    from kattn.callbacks import GradientClipping, SpikeGuard

    if name in ("spike_guard", "roll_back"):
        goes_back = name == "roll_back"
        guard = SpikeGuard(z_threshold=None, every=LOOK) if goes_back else SpikeGuard()
        return [GradientClipping("global_norm", None), guard]
    if name in (CLEAN, NONE):
        return [GradientClipping("global_norm", None)]
    if name == "agc":
        return [GradientClipping("agc", 0.01, groups={"^head/": None})]
    return [GradientClipping(name, THRESHOLDS.get(name))]


def build(text: Text, settings: Settings, seed: int) -> Any:
    """A compiled causal Transformer with normalisation before each part of a block."""
    import keras

    from kattn.layers import RotaryEmbedding, SelfAttention

    keras.utils.set_random_seed(seed)
    layers, width = keras.layers, settings.width
    inputs = keras.Input((settings.length,), dtype="int32")
    x = layers.Embedding(len(text.characters), width, name="embedding")(inputs)
    for number in range(settings.blocks):
        name = f"block{number}"
        y = layers.LayerNormalization(name=f"{name}_norm1")(x)
        attention = SelfAttention(
            settings.num_heads,
            causal=True,
            position=RotaryEmbedding(),
            name=f"{name}_attention",
        )
        x = layers.Add(name=f"{name}_add1")([x, attention(y)])
        y = layers.LayerNormalization(name=f"{name}_norm2")(x)
        y = layers.Dense(4 * width, "gelu", name=f"{name}_up")(y)
        y = layers.Dense(width, name=f"{name}_down")(y)
        x = layers.Add(name=f"{name}_add2")([x, y])
    x = layers.LayerNormalization(name="norm")(x)
    outputs = layers.Dense(len(text.characters), name="head")(x)
    model = keras.Model(inputs, outputs)
    optimizer = harness.adamw(settings.learning_rate, settings.weight_decay)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def training_batches(text: Text, settings: Settings, seed: int, at: Sequence[int]) -> Any:
    """One epoch of random windows, corrupted at the steps in `at`."""
    windows = text.windows(settings.steps * settings.batch_size, settings.length, seed)
    return spikes.corrupted_batches(windows, settings.batch_size, seed, at, settings.spike_weight)


def train(text: Text, settings: Settings, folder: harness.RunFolder) -> None:
    """Fit what has no result yet."""
    from kattn.callbacks import LearningRate
    from kattn.schedules import WarmupStableDecay
    from recipes.harness.watching import StepLosses

    peak = settings.learning_rate
    if settings.lr_find:
        model, first = build(text, settings, 0), training_batches(text, settings, 0, at=())
        peak = harness.find_rate(model, first, folder, low=1e-5)
    tenth, fifth = max(settings.steps // 10, 1), max(settings.steps // 5, 1)
    schedule = WarmupStableDecay(peak, settings.steps, warmup_steps=tenth, decay_steps=fifth)
    weights = [build(text, settings, seed).get_weights() for seed in range(settings.seeds)]
    x, y = text.to_validate(settings.length, settings.batch_size)
    compiled, restartable = None, None
    for kind, seed, name in harness.unfinished(folder, settings.compared, settings.seeds):
        clipping, *guards = callbacks = clip_callbacks(kind)
        signature = [callback.signature() for callback in callbacks]
        if restartable is None or signature != compiled:
            compiled, restartable = signature, harness.Restartable(build(text, settings, 0))
        model, losses = restartable.restart(weights[seed]), StepLosses()
        epochs = harness.fit(
            model,
            training_batches(text, settings, seed, () if kind == CLEAN else settings.spikes),
            [LearningRate(schedule), *callbacks, losses],
            folder,
            name=name,
            epochs=1,
            every=settings.checkpoint_every,
        )
        loss = model.evaluate(x, y, batch_size=settings.batch_size, verbose=0)
        result = {
            "clip": kind,
            "seed": seed,
            "peak": peak,
            "epochs": epochs,
            "test": {"loss": float(loss)},
            "losses": losses.losses,
            "norms": clipping.history,
            "skipped": [step for guard in guards for step in guard.skipped],
            "roll_backs": [step for guard in guards for step in guard.roll_backs],
        }
        harness.finish(folder, name, result)


def write_report(text: Text, settings: Settings, folder: harness.RunFolder, backend: str) -> str:
    """Plots, and everything the run has to say in `report.md`; returns the verdicts."""
    results = harness.read_results(folder, settings.compared, settings.seeds)
    losses = {kind: [run["test"]["loss"] for run in runs] for kind, runs in results.items()}
    seen = {
        kind: [spikes.recoveries(run["losses"], settings.spikes) for run in runs]
        for kind, runs in results.items()
    }
    each = {kind: [spike for run in runs for spike in run] for kind, runs in seen.items()}
    heights = {kind: [x.height for x in every] for kind, every in each.items()}
    steps = {kind: [x.steps for x in every if x.steps is not None] for kind, every in each.items()}
    others: dict[str, Any] = {
        "height after a spike, nats": heights,
        "recovery, steps, if any": steps,
    }
    title = "validation loss, nats per character"
    draw_results = functools.partial(harness.results_figure, losses, TITLES, CLEAN, others, title)
    draw_spikes = functools.partial(spikes.spikes_figure, results, TITLES, CLEAN, settings.spikes)
    draw_norms = functools.partial(spikes.norms_figure, results, TITLES)
    figures = (
        folder.add_figure(
            "results.png", "Results by clipping", functools.partial(draw_results, linear=0.1)
        ),
        folder.add_figure("spikes.png", "Loss around the spikes", draw_spikes),
        folder.add_figure("norms.png", "Norms of gradients", draw_norms),
    )
    shown = "\n\n".join(figures)
    between = harness.PairedDifference.between
    rows = [
        [
            TITLES[kind],
            harness.with_spread(losses[kind]),
            "" if kind == CLEAN else between(losses[kind], losses[CLEAN]),
            "" if kind in (CLEAN, NONE) else between(losses[kind], losses[NONE]),
            # Spikes of one run are not independent, so the spread is that of their means.
            harness.with_spread([statistics.fmean(x.height for x in one) for one in seen[kind]], 3),
            spikes.in_words(each[kind]),
            spikes.share_clipped(results[kind], settings.spikes),
        ]
        for kind in results
    ]
    header = ["Clipping", "Validation loss", "Difference to no spikes", "Difference to none"]
    header += ["Height", "Recovery, steps", "Changed, %"]
    spiking = {kind: values for kind, values in losses.items() if kind != CLEAN}
    against = harness.clear_differences
    said = against("Validation loss on text with spikes", NONE, spiking, TITLES)
    said += "\n\n" + against("The same", CLEAN, losses, TITLES)
    report = f"""# Clipping of gradients, on text with spikes

{said}

{harness.table(header, rows)}

{harness.bullets(notes(text, settings, results))}

{shown}

{harness.rate_section(folder)}{harness.closing_sections(settings, backend)}"""
    folder.write_text("report.md", report)
    return said


def notes(text: Text, settings: Settings, results: harness.Results) -> tuple[str, ...]:
    """Remarks below the table: what the columns mean, and how the models were trained."""

    def count(kind: str, key: str) -> int | str:
        return sum(len(run[key]) for run in results[kind]) if kind in results else "not run"

    return (
        f"Losses in nats per character, mean ± standard deviation over seeds ({settings.seeds}). "
        "Differences are paired by seed, with the 95 % interval of Student's t; * marks one that "
        f'leaves 0 out. "{TITLES[CLEAN]}" is the control: it shows what noise alone does to height '
        "and recovery, and the difference to it is what the spikes cost in spite of clipping.",
        spikes.about_spikes(settings.spikes, settings.spike_weight),
        f"Steps that SpikeGuard left out: {count('spike_guard', 'skipped')}; times that it went "
        f"back: {count('roll_back', 'roll_backs')}; in all runs. All have the same batches, so "
        "updates left out or taken back are lost, and the schedule ends early by as many.",
        f"{settings.blocks} block(s) of causal self-attention with rotary embedding and an MLP, "
        f"width {settings.width}, windows of {settings.length} characters, AdamW, {settings.steps} "
        f"updates of {settings.batch_size} windows, peak rate {results[NONE][0]['peak']:.3g}: a "
        "tenth of warm-up, a fifth of linear decay.",
        text.about,
        harness.time_spent(results),
    )


def prepare(settings: Settings) -> harness.Job:
    """Read the text, and compare the ways of clipping on it."""
    text = load_text(settings.text, settings.length, settings.batch_size)
    text = dataclasses.replace(text, name=harness.in_markdown(text.name))

    def work(folder: harness.RunFolder, backend: str) -> str:
        train(text, settings, folder)
        return write_report(text, settings, folder, backend)

    return harness.Job(f"{len(settings.compared) * settings.seeds} fits", work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return harness.main(RECIPE, harness.parse(RECIPE, Settings, arguments), prepare)


if __name__ == "__main__":
    sys.exit(main())
