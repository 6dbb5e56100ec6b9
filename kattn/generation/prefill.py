"""The first pass over the prompts, which fills the cache."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.generation.history import empty_history


class Inputs(NamedTuple):
    """What a generation begins with: tensors, and None for those that there are not.

    Args:
        tokens: Prompts, int32, shape `(B, T)`; the tokens of a row come first.
        real: Bool, shape `(B, T)`, True = token, False = padding; or None.
        prefix: `Prefix` of one sequence or of B, behind which the prompts come; or None.
        context: Context that a model attends to, or None.
        context_mask: Padding of the context, or None.
    """

    tokens: Any
    real: Any
    prefix: Any
    context: Any
    context_mask: Any


class Prefix(NamedTuple):
    """What was computed of tokens that others come behind.

    Args:
        cache: Cache of the model, the batch axis first in each tensor.
        history: `History` of the tokens that the cache has.
    """

    cache: Any
    history: Any


def prefill(decoder, inputs, length, pad_token, new_cache):
    """One pass over the prompts.

    Args:
        decoder: What decodes.
        inputs: The `Inputs`.
        length: Number of steps that there must be room for.
        pad_token: Token that stands where there is none.
        new_cache: Function of a decoder, of the arguments of `init_cache` that returns a cache.

    Returns:
        `(logits, prefix)`: the logits behind the last token of each prompt, `(B, V)`, and the
        `Prefix` with the prompts.
    """
    tokens, real, prefix, context, context_mask = inputs
    batch, steps = tokens.shape
    if prefix is None:
        cache = new_cache(decoder, batch, length, context, context_mask)
        history = empty_history(batch, length, pad_token)
    else:
        # Not the prefix itself: PyTorch's is written in place, and it may be used again.
        cache, history = repeated(prefix, batch // prefix.history.length.shape[0])
    known = tokens if real is None else ops.where(real, tokens, 0)  # whatever stands for padding
    logits, cache = decoder.decode(known, cache, mask=real)  # (B, T, V)
    if real is None:
        count = ops.full((batch,), steps, "int32")
        logits = logits[:, -1]
    else:
        count = ops.sum(ops.cast(real, "int32"), axis=1)
        logits = ops.take_along_axis(logits, (count - 1)[:, None, None], axis=1)[:, 0]
    return logits, Prefix(cache, history.extend(tokens, count))


def check_in_vocabulary(logits, pad_token, end_tokens):
    """Raises ValueError unless there is a logit, `(B, V)`, of each token; `pad_token` is read."""
    size = logits.shape[-1]
    for name, tokens in (("pad_token", [pad_token]), ("end_token", end_tokens)):
        for token in tokens:
            if not 0 <= token < size:
                raise arguments.error(
                    f"`{name}` must be a token of the model, an integer in [0, {size})",
                    **{name: token},
                )


def repeated(tree, times):
    """A copy of a tree of tensors, in which each sequence comes so many times in a row."""
    # Repeated entries of a tensor of PyTorch may share their memory.
    return keras.tree.map_structure(lambda x: ops.copy(ops.repeat(x, times, axis=0)), tree)
