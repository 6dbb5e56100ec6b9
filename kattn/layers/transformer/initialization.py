"""Initial weights of deep Transformers: GPT-2's and DeepNorm's (Wang et al., 2022)."""

from typing import NamedTuple

import numpy as np
from keras import ops

from kattn import arguments

# The parts of a block, and which projections they have.
PARTS = {
    "attention": ("output", "value"),
    "cross_attention": ("output", "value"),
    "feed_forward": ("output", "hidden"),
}
PROJECTIONS = ("output", "value", "hidden")


def scale_projections(blocks, factor=None, *, projections=("output",)):
    """Multiplies initial weights of Transformer blocks by a factor, in place.

    With the defaults it does what GPT-2 does: each residual connection adds to the variance of the
    stream, so the last projection before it is made smaller, by 1 / sqrt(number of connections).
    Call it once, after the model is built and before it is trained or loaded.

    Args:
        blocks: List of all blocks of the model, `TransformerEncoderBlock` or
            `TransformerDecoderBlock`, that are built.
        factor: Number that the matrices are multiplied by. None for 1 / sqrt(number of residual
            connections in all blocks), which is 1 / sqrt(2 L) for L blocks without
            `cross_attention`.
        projections: Names of the projections: "output" (the last of each attention and feed-forward
            network), "value" (of each attention), "hidden" (the first of each feed-forward
            network).

    Returns:
        None.

    Raises:
        ValueError: If a block is not built or has no such projection, or if an argument is out of
            range.

    Example:
        >>> make = lambda: kattn.layers.SelfAttention(2, causal=True)
        >>> blocks = [kattn.layers.TransformerDecoderBlock(make()) for _ in range(8)]
        >>> for block in blocks:
        ...     block.build((None, None, 16))
        >>> kattn.layers.scale_projections(blocks)  # by 1 / sqrt(16)

    Reference:
        Radford et al. 2019, sec. 2.3 (GPT-2),
        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    """
    for name in projections:
        arguments.check_choice(PROJECTIONS, projections=name)
    parts = [part for block in blocks for part in _parts(block)]
    if factor is None:
        factor = max(len(parts), 1) ** -0.5
    arguments.check_positive(factor=factor)
    for role, part in dict.fromkeys(parts):  # one that several blocks share has one matrix
        for name in projections:
            if name in PARTS[role]:
                kernel, scales = _kernel(role, part, name, factor)
                kernel.assign(ops.convert_to_tensor(kernel) * ops.convert_to_tensor(scales))


class DeepNorm(NamedTuple):
    """The two numbers of DeepNorm.

    Args:
        alpha: Number for the argument `residual_scale` of each block.
        beta: Number that the initial weights of "output", "value" and "hidden" projections are
            multiplied by, with `scale_projections`.
    """

    alpha: float
    beta: float


def deep_norm(num_layers, *, encoder_layers=None, decoder_layers=None):
    """The numbers with which post-norm Transformers of hundreds of layers train.

    The blocks need `placement="post"` and the initializer "glorot_uniform" or "glorot_normal".

    Args:
        num_layers: Number of blocks of the stack that the numbers are for.
        encoder_layers: Number of blocks of the encoder, if the stack is the decoder beside one.
        decoder_layers: Number of blocks of the decoder, if the stack is the encoder beside one.

    Returns:
        `(alpha, beta)`, a `DeepNorm`.

    Raises:
        ValueError: If a number of blocks is not an integer >= 1, or if all three are given.

    Example:
        >>> alpha, beta = kattn.layers.deep_norm(num_layers=8)
        >>> alpha
        2.0
        >>> attention = kattn.layers.SelfAttention(2)
        >>> options = {"placement": "post", "residual_scale": alpha}
        >>> block = kattn.layers.TransformerEncoderBlock(attention, **options)
        >>> block.build((None, None, 16))
        >>> names = ("output", "value", "hidden")
        >>> kattn.layers.scale_projections([block], beta, projections=names)

    Reference:
        Wang et al. 2022, figure 2, https://arxiv.org/abs/2203.00555
    """
    arguments.check_integers(1, num_layers=num_layers)
    others = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    arguments.check_optional_integers(1, **others)
    if None not in others.values():
        raise arguments.error(
            "A stack is an encoder or a decoder: give the number of blocks of the other one only",
            num_layers=num_layers,
            **others,
        )
    if encoder_layers is not None:
        return DeepNorm((3 * num_layers) ** 0.25, (12 * num_layers) ** -0.25)
    if decoder_layers is not None:
        both = (num_layers**4 * decoder_layers) ** (1 / 16)
        return DeepNorm(0.81 * both, 0.87 / both)
    return DeepNorm((2 * num_layers) ** 0.25, (8 * num_layers) ** -0.25)


def _parts(block):
    """The parts of a block that have a residual connection, by role."""
    if not block.built:
        raise arguments.error("`blocks` must be built: call the model first", block=block.name)
    found = [(role, getattr(block, role, None)) for role in PARTS]
    return [(role, part) for role, part in found if part is not None]


def _kernel(role, part, projection, factor):
    """A matrix of a part, and what its columns are multiplied by."""
    dense = {layer.name: layer for layer in part._flatten_layers(include_self=False)}
    names = ("qkv", "key_value") if projection == "value" else (projection,)
    kernel = next((dense[name].kernel for name in names if name in dense), None)
    if kernel is None:
        raise arguments.error(
            f"`{role}` must be a layer of kattn that has the projections to scale",
            projection=projection,
            **{role: part},
        )
    scales = np.full(kernel.shape[-1], factor, "float32")
    if projection == "value":  # it is stored behind queries and keys
        scales[: -part.head_sizes.value_width] = 1.0
    return kernel, scales
