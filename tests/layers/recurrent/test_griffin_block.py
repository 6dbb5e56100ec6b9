import numpy as np
import pytest

from kattn.layers import (
    FeedForward,
    GriffinBlock,
    GriffinRecurrence,
    RotaryEmbedding,
    SelfAttention,
)
from tests import checks
from tests.compute import assert_close, quick, run
from tests.recurrent_oracle import KEEP, build, weights_of

FULL = {
    "num_heads": 2,
    "window": 3,
    "pattern": ("attention", "recurrent"),
    "num_key_value_heads": 2,
    "recurrent_units": 6,
    "kernel_size": 3,
    "hidden_dim": 5,
    "dropout": 0.2,
    "seed": 3,
}


def rms(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def part_of(layer, source, prefix, x):
    """The output of a part by itself, with the weights that the block has for it."""
    layer.build(x.shape)
    names = [weight.path.split("/", 1)[1] for weight in layer.weights]
    layer.set_weights([source[f"{prefix}/{name}"] for name in names])
    masks = {} if isinstance(layer, FeedForward) else {"mask": KEEP}
    return lambda h: run(quick(layer), h.astype("float32"), **masks)


def test_matches_its_parts(rng):
    """De et al. 2024, sec. 2.1; the parts have oracles of their own."""
    block, x = build(GriffinBlock(**FULL), rng)
    w = {name.removeprefix("blocks/"): value for name, value in weights_of(block).items()}
    attention = SelfAttention(
        2, causal=True, window=3, num_key_value_heads=2, position=RotaryEmbedding(fraction=0.5)
    )
    mixers = attention, GriffinRecurrence(2, 6, kernel_size=3)
    h = np.where(KEEP[..., None], x, 0.0)
    for i, mixer in enumerate(mixers):
        mix = part_of(mixer, w, f"block{i}/attention", h)
        h = h + mix(rms(h, w[f"block{i}/attention_residual/norm/scale"]))
        feed_forward = FeedForward(5, activation="geglu_tanh")
        forward = part_of(feed_forward, w, f"block{i}/feed_forward", h)
        h = h + forward(rms(h, w[f"block{i}/feed_forward_residual/norm/scale"]))
    assert_close(run(quick(block), x, mask=KEEP)[KEEP], h[KEEP])


def test_the_pattern_of_the_paper():
    """Two recurrent blocks, then one that attends, with one head of keys and values."""
    block = GriffinBlock(2)
    block.build((None, 5, 8))
    mixers = [part.attention for part in block._stack.blocks]
    kinds = [type(mixer) for mixer in mixers]
    assert kinds == [GriffinRecurrence, GriffinRecurrence, SelfAttention]
    assert (mixers[2].window, mixers[2].num_key_value_heads) == (1024, 1)
    assert block._stack.blocks[0].feed_forward.hidden_dim == 24


def make(**options):
    return GriffinBlock(**{**FULL, **options})


CHECKS = [
    checks.check_config,
    checks.check_sublayers,
    checks.check_training,
    checks.check_saving,
    checks.check_masks,
    checks.check_future,
    checks.check_dropout,
    checks.check_decoding,
]


@pytest.mark.parametrize("check", CHECKS)
def test_as_a_layer(rng, check):
    """What of the battery the block could get wrong; its parts pass all of it."""
    check(make, [rng.normal(size=(3, 5, 8)).astype("float32")])


BAD = {
    "num_heads": ({"num_heads": 0}, "`num_heads` must be an integer >= 1.*num_heads=0"),
    "window": ({"window": 0}, "`window` must be an integer >= 1.*window=0"),
    "hidden_dim": ({"hidden_dim": 0}, "`hidden_dim` must be an integer >= 1.*=0"),
    "no pattern": ({"pattern": ()}, r"`pattern` must be a sequence of one mixer or more.*=\(\)"),
    "one word": ({"pattern": "recurrent"}, r"`pattern` must be a sequence.*='recurrent'"),
    "key heads": (
        {"num_key_value_heads": 3},
        r"`num_heads` must be a multiple of `num_key_value_heads`; .*=2, num_key_value_heads=3",
    ),
    "kernel_size": ({"kernel_size": 0}, r"`kernel_size` must be an integer >= 1.*=0"),
    "units": ({"recurrent_units": 0}, r"`recurrent_units` must be an integer >= 1.*=0"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction"),
    "pattern": ({"pattern": ("lstm",)}, "`pattern` must be one of recurrent, attention; .*'lstm'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        GriffinBlock(**{"num_heads": 2, **options})
