import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers, masks
from kattn.layers import CrossAttention, FeedForward, SelfAttention, TransformerDecoderBlock
from tests import oracle, transformer_oracle
from tests.checks import (
    check_config,
    check_decoding,
    check_future,
    check_saving,
    check_sublayers,
    check_ways_in,
    ready,
    shake,
)
from tests.compute import assert_close, run
from tests.transformer_oracle import weights_of

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
KEEP_CONTEXT = np.array([[1, 1, 0, 1], [0] * 4, [1] * 4], bool)
CASES = {
    "default": {},
    "post": {"placement": "post", "residual_scale": 1.3},
    "sandwich": {"placement": "sandwich", "norm": "rms", "layer_scale": 0.1},
    "parallel": {"placement": "parallel"},
}


def make(*, cross=True, dtype=None, **options):
    """A block of width 8, whose parts have the dtype that is asked for, too."""
    return TransformerDecoderBlock(
        SelfAttention(2, causal=True, dtype=dtype),
        FeedForward(6, dtype=dtype),
        cross_attention=CrossAttention(2, dtype=dtype) if cross else None,
        dtype=dtype,
        **options,
    )


@pytest.fixture
def inputs(rng):
    return [rng.normal(size=shape).astype("float32") for shape in ((3, 5, 8), (3, 4, 6))]


def expected_output(block, x, context, keep, keep_context, **options):
    w = weights_of(block)
    causal = oracle.causal(5, 5) & keep[:, None, None] & keep[:, None, :, None]
    across = keep_context[:, None, None] & keep[:, None, :, None]
    see, see_context = (np.repeat(keep, 2, axis=1) for keep in (causal, across))
    parts = [
        ("attention", lambda h: transformer_oracle.self_attention(w, h, see, 2)),
        (
            "cross_attention",
            lambda h: transformer_oracle.cross_attention(w, h, context, see_context, 2),
        ),
        ("feed_forward", lambda h: transformer_oracle.feed_forward(w, h)),
    ]
    if block.cross_attention is None:
        parts.pop(1)
    placement, scale = options.get("placement", "pre"), options.get("residual_scale", 1.0)
    return transformer_oracle.block(w, x, parts, placement=placement, scale=scale)


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(inputs, case):
    block = ready(functools.partial(make, **CASES[case]), inputs)
    found = run(block, *inputs, mask=KEEP, context_mask=KEEP_CONTEXT)
    x = np.where(KEEP[..., None], inputs[0], 0.0)
    expected = expected_output(block, x, inputs[1], KEEP, KEEP_CONTEXT, **CASES[case])
    assert_close(found[KEEP], expected[KEEP])


def test_without_a_context(inputs):
    block = ready(lambda: make(cross=False), inputs[:1])
    expected = expected_output(block, inputs[0], None, np.ones_like(KEEP), KEEP_CONTEXT)
    assert_close(run(block, inputs[0]), expected)
    cache = block.init_cache(3, 5)
    assert len(cache) == 1
    assert_close(run(block.decode, inputs[0], cache)[0], expected)


def full(**options):
    """As far off its defaults as it goes."""
    part = {"dtype": options.get("dtype"), "dropout": 0.1, "seed": 1}
    return TransformerDecoderBlock(
        SelfAttention(2, causal=True, position=layers.RotaryEmbedding(name="rotary"), **part),
        FeedForward(6, "geglu", **part),
        cross_attention=CrossAttention(2, **part),
        norm="rms",
        placement="post",
        residual_scale=1.5,
        dropout=0.2,
        drop_path=0.3,
        layer_scale=0.2,
        remat=True,
        seed=4,
        **options,
    )


@pytest.mark.parametrize(
    "check",
    [check_config, check_sublayers, check_saving, check_ways_in, check_future, check_decoding],
)
def test_as_other_layers(inputs, check):
    """The others are those of the encoder block, of which it is one."""
    check(full, inputs)


def test_mask_objects_for_both(inputs):
    """In a functional model each keeps its own arrays, also when it is loaded."""
    ids = np.array([[0, 0, 1, 1, 1], [0] * 5, [0, 1, 1, 2, 2]], "int32")
    nodes = [keras.Input(x.shape[1:]) for x in inputs]
    given = [keras.Input((5,), dtype="int32"), keras.Input((4,), dtype="bool")]

    def masks_of(ids, keep):
        return {"mask": masks.Segments(ids), "context_mask": masks.Padding(keep)}

    block = make()
    model = keras.Model([*nodes, *given], block(*nodes, **masks_of(*given)))
    shake(model)
    wanted = run(block, *inputs, **masks_of(ids, KEEP_CONTEXT))
    assert np.abs(wanted - run(block, *inputs)).max() > 1e-2
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    for each in (model, again):
        assert_close(each.predict([*inputs, ids, KEEP_CONTEXT], verbose=0), wanted)


def test_decoding_is_masked_as_the_call(inputs):
    """Packed segments, by a mask over the positions of the whole sequence."""
    block = ready(make, inputs)
    x, context = inputs
    packed = masks.Segments(ops.convert_to_tensor(np.array([[0, 0, 1, 1, 1]] * 3, "int32")))
    cache, pieces = block.init_cache(3, 5, context, ops.convert_to_tensor(KEEP_CONTEXT)), []
    for piece in (x[:, :3], x[:, 3:]):
        y, cache = block.decode(piece, cache, mask=packed)
        pieces.append(run(ops.stop_gradient, y))
    wanted = run(block, x, context, mask=packed, context_mask=KEEP_CONTEXT)
    assert_close(np.concatenate(pieces, axis=1), wanted)


class Blind(keras.layers.Layer):
    """Mixes steps, and does not decode."""


BAD = {
    "future": (
        {"attention": SelfAttention(2)},
        r"The `attention` of a decoder block must be causal.*causal=True",
    ),
    "no decoding": ({"attention": Blind()}, r"`attention` must be a layer that can decode.*Blind"),
    "part": ({"cross_attention": CrossAttention}, r"`cross_attention` must be a Keras layer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        TransformerDecoderBlock(**{"attention": SelfAttention(2, causal=True), **options})


def test_a_causal_pattern_will_do():
    prefix = SelfAttention(2, pattern=masks.Causal() | masks.Prefix(2))
    assert TransformerDecoderBlock(prefix).attention is prefix


def test_a_context_where_there_is_none(inputs):
    message = r"with `cross_attention` must be given a `context`, and no other block may"
    with pytest.raises(ValueError, match=message):
        make(cross=False)(*inputs)
    with pytest.raises(ValueError, match=message):
        make()(inputs[0])
    block = ready(make, inputs)
    with pytest.raises(ValueError, match=message):
        block(inputs[0])
