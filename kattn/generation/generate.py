"""Generation of tokens by any model that decodes."""

import functools
import random

import keras
import numpy as np
from keras import ops

from kattn import arguments
from kattn.generation.beam_search import BeamLoop, BeamSearch
from kattn.generation.cache_policies import FullCache
from kattn.generation.keras_hub_sampler import KerasHubSampler, is_keras_hub_sampler
from kattn.generation.loop import SamplingLoop
from kattn.generation.prefill import Inputs
from kattn.generation.programs import programs_of
from kattn.generation.prompts import read_prompts
from kattn.generation.samplers import GreedySampler, Sampler

REPORTS = 50  # times that a progress bar moves
LONG = 64  # new tokens from which on XLA, which TensorFlow can do without, pays for its seconds


def generate(
    model,
    prompts,
    max_new_tokens,
    *,
    sampler=None,
    end_token=None,
    pad_token=0,
    mask=None,
    context=None,
    context_mask=None,
    seed=None,
    cache=None,
    cache_policy=None,
    on_tokens=None,
    progress=False,
):
    """New tokens behind prompts.

    The prompts are read in one pass. Then a compiled loop chooses a token of each sequence and
    decodes it, until all sequences have ended or have `max_new_tokens`. Keys, values and other
    states of the steps before are kept, so that no step is computed twice. On JAX and TensorFlow
    there is one compilation for each shape of the prompts, number of tokens and sampler; new
    weights, prompts and seeds need no other. TensorFlow compiles with XLA, which takes seconds more
    and decodes several times as fast, for 64 new tokens or more, or if the model was compiled with
    `jit_compile=True`. On PyTorch the model's `decode` of one step is traced once for each shape of
    its cache, or called for each step if numbers decide what it computes; samplers and their rules
    are called for each step. What a model changes from step to step must be in its cache or in
    variables.

    Args:
        model: Model of tokens that gives logits: one with the methods `init_cache` and `decode`; or
            a functional or sequential `keras.Model` of layers that decode, such as
            `kattn.layers.SelfAttention(4, causal=True)`, and of layers that act on each step alone,
            see `kattn.generation.FunctionalDecoder`.
        prompts: Array of integers, shape `(B, T)`; or a list of B lists of integers, which may
            differ in length.
        max_new_tokens: Number of new tokens of each sequence at most.
        sampler: How tokens are chosen: `kattn.generation.GreedySampler()`, which None stands for,
            `kattn.generation.RandomSampler([...])`, `kattn.generation.BeamSearch(4)`, or a sampler
            of KerasHub (`keras_nlp`).
        end_token: Token that ends a sequence, or several in a list. None to end none before
            `max_new_tokens`.
        pad_token: Token that stands behind an end, one that the model has.
        mask: Padding of `prompts`, bool, shape `(B, T)`, True = token, False = padding, at either
            side. None if all are tokens. Lists of different lengths need no mask.
        context: Sequence that the model attends to, such as the input of a translation, for models
            whose `init_cache` takes one. None if there is none.
        context_mask: Padding of the context, bool, shape `(B, S)`, True = real step, or None.
        seed: Integer >= 0; the same seed gives the same tokens again. None for a random one, which
            follows `keras.utils.set_random_seed`.
        cache: `kattn.generation.PrefixCache`, behind whose tokens the prompts come, and in which
            they and the new tokens stay; or None.
        cache_policy: Which steps the model can look back at: `kattn.generation.FullCache()`, which
            None stands for, or another of its kind, such as `kattn.generation.WindowCache(256)`.
        on_tokens: Function that is called with the tokens of each step as they come, NumPy, int32,
            shape `(B,)`; or None.
        progress: Whether to show a progress bar.

    Returns:
        The new tokens, NumPy, int32, shape `(B, max_new_tokens)`: those of a row come first, its
        end token included, and `pad_token` behind them.

    Raises:
        ValueError: If an argument is out of range, the prompts do not fit, or the model cannot
            decode.

    Example:
        >>> tokens = keras.Input((None,), dtype="int32")
        >>> h = keras.layers.Embedding(11, 8)(tokens)
        >>> h = h + kattn.layers.SelfAttention(2, causal=True)(h)
        >>> model = keras.Model(tokens, keras.layers.Dense(11)(h))
        >>> kattn.generate(model, [[3, 1, 4], [1, 5]], 4).shape
        (2, 4)
        >>> from kattn.generation import RandomSampler, Temperature, TopK
        >>> sampler = RandomSampler([Temperature(0.8), TopK(5)])
        >>> kattn.generate(model, [[3, 1, 4]], 4, sampler=sampler, seed=0).shape
        (1, 4)
    """
    arguments.check_integers(0, max_new_tokens=max_new_tokens)
    read, seed = read_prompts(prompts, mask, pad_token), _seed(seed)
    policy = FullCache() if cache_policy is None else cache_policy
    held = _check_cache(cache, read, max_new_tokens, policy)
    options = {
        "length": read.tokens.shape[1] + max_new_tokens if cache is None else cache.length,
        "end_tokens": _end_tokens(end_token),
        "pad_token": pad_token,
        "policy": policy,
    }
    inputs = _inputs(read, None if cache is None else cache.prefix, context, context_mask)
    run = functools.partial(programs_of(model).run, model, max_new_tokens >= LONG)
    if isinstance(sampler, BeamSearch):
        _check_search(sampler, max_new_tokens, cache, on_tokens, progress)
        search = BeamLoop(sampler, max_new_tokens, **options)
        return ops.convert_to_numpy(run(search, "run", inputs))
    plan = SamplingLoop(_read_sampler(sampler), keeps_cache=cache is not None, **options)
    if max_new_tokens:
        state = _loop(run, plan, inputs, seed, max_new_tokens, on_tokens, progress)
        if cache is not None:
            cache.fill(run(plan, "finish", state), policy)
        return _new_tokens(state.history, held + read.counts, max_new_tokens, pad_token)
    if cache is not None:
        cache.fill(run(plan, "read", inputs), policy)
    return np.zeros((len(read.tokens), 0), "int32")


def _inputs(read, prefix, context, context_mask):
    """What the first pass reads, as tensors."""
    given = read.tokens, read.real, context, context_mask
    tokens, real, *context = (None if x is None else ops.convert_to_tensor(x) for x in given)
    return Inputs(tokens, real, prefix, *context)


def _loop(run, plan, inputs, seed, count, on_tokens, progress):
    """The last state of the loop, which stops on the way for whoever wants to know of it."""
    each = -(-count // REPORTS) if progress else count
    each = 1 if on_tokens is not None else each
    bar = keras.utils.Progbar(count, unit_name="token") if progress else None
    state, step = run(plan, "begin", inputs, plan.sampler.initial_state(), seed), 1
    while True:
        if on_tokens is not None:
            on_tokens(ops.convert_to_numpy(state.last))
        if bar is not None:
            bar.update(step)
        if step == count or (each < count and _all(state.done)):
            break
        step = min(step + each, count)
        state = run(plan, "advance", state, ops.convert_to_tensor(step, "int32"), seed)
    if bar is not None:
        bar.update(step, finalize=True)
    plan.sampler.finish(state.sampler)
    return state


def _all(done):
    return bool(ops.convert_to_numpy(done).all())


def _new_tokens(history, start, count, pad_token):
    """`(B, count)` int32 NumPy: the tokens from `start` `(B,)` on."""
    tokens, length = (ops.convert_to_numpy(x) for x in history)
    index = start[:, None] + np.arange(count)
    found = np.take_along_axis(tokens, np.minimum(index, tokens.shape[1] - 1), axis=1)
    return np.where(index < length[:, None], found, pad_token).astype("int32")


def _end_tokens(end_token):
    if end_token is None:
        return ()
    ends = tuple(end_token) if isinstance(end_token, list | tuple) else (end_token,)
    for token in ends:
        arguments.check_integers(0, end_token=token)
    return ends


def _read_sampler(sampler):
    if sampler is None:
        return GreedySampler()
    if is_keras_hub_sampler(sampler):
        return KerasHubSampler(sampler)
    if not isinstance(sampler, Sampler):
        raise arguments.error(
            "`sampler` must be a sampler, such as kattn.generation.RandomSampler([TopK(40)])",
            sampler=sampler,
        )
    return sampler


def _check_search(search, max_new_tokens, cache, on_tokens, progress):
    if not max_new_tokens or cache is not None or on_tokens is not None or progress:
        raise arguments.error(
            "Beam search gives its tokens at its end: it takes no `cache`, no `on_tokens` and no "
            "`progress`, and `max_new_tokens` must be at least 1",
            sampler=search,
            max_new_tokens=max_new_tokens,
        )


def _check_cache(cache, read, max_new_tokens, policy):
    """The number of tokens that a cache holds of each sequence; ValueError if it does not fit."""
    held = 0
    if cache is not None and cache.prefix is not None:
        held, batch = cache.lengths, len(read.tokens)
        if len(held) not in (1, batch):
            raise arguments.error(
                "`cache` must hold one sequence, or as many as there are prompts",
                sequences=len(held),
                prompts=read.tokens,
            )
        if policy != cache.policy:
            raise arguments.error(
                "`cache_policy` must stay what it was when `cache` was filled",
                cache_policy=policy,
                filled_with=cache.policy,
            )
    needed = int((held + read.counts).max()) + max_new_tokens
    if cache is not None and needed > cache.length:
        raise arguments.error(
            "`cache` must have room for its tokens, the prompts and `max_new_tokens`",
            length=cache.length,
            needed=needed,
        )
    return held


def _seed(seed):
    if seed is None:
        seed = random.getrandbits(31)  # Python's generator, as Keras has it
    arguments.check_integers(0, seed=seed)
    return ops.convert_to_tensor(seed % 2**31, "int32")
