"""Small models that generate, and generation without a cache: the oracle."""

import collections

import keras
import numpy as np
from keras import ops

from kattn.generation import History
from kattn.layers import SelfAttention
from tests.compute import quick, run

VOCABULARY, WIDTH = 11, 8


class Traces(collections.UserList):
    """A list that Keras leaves as it is."""


class Decoder(keras.Model):
    """A model that decodes; `traces` has the number of steps of each call of `decode`."""

    def __init__(self, position=None, **options):
        super().__init__()
        self.embedding = keras.layers.Embedding(VOCABULARY, WIDTH)
        self.attention = SelfAttention(2, causal=True, position=position, **options)
        self.head = keras.layers.Dense(VOCABULARY)
        self.traces = Traces()

    def call(self, tokens):
        h = self.embedding(tokens)
        return self.head(h + self.attention(h))

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        return (self.attention.init_cache(batch_size, length, context, context_mask),)

    def decode(self, tokens, cache, mask=None):
        self.traces.append(tokens.shape[1])
        h = self.embedding(tokens)
        y, cache = self.attention.decode(h, cache[0], mask=mask)
        return self.head(h + y), (cache,)


class Recurrent(keras.Model):
    """h_t = h_{t-1} / 2 + x_t, from which the logits are made; `h_0` sums up a context.

    It is compiled in no time. `traces` has the number of steps of each call of `decode`.
    """

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(VOCABULARY, WIDTH)
        self.head = keras.layers.Dense(VOCABULARY)
        self.traces = Traces()

    def call(self, tokens, context=None):
        cache = self.init_cache(tokens.shape[0], 1, context)
        return self._outputs(tokens, *cache)[0]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        if context is None:
            return (ops.zeros((batch_size, WIDTH)),)
        summed = self.embedding(context)
        if context_mask is not None:
            summed = ops.where(context_mask[..., None], summed, 0.0)
        return (ops.sum(summed, axis=1),)

    def decode(self, tokens, cache, mask=None):
        self.traces.append(tokens.shape[1])
        return self._outputs(tokens, *cache, mask)

    def _outputs(self, tokens, h, mask=None):
        x, outputs = self.embedding(tokens), []
        for t in range(x.shape[1]):
            new = h / 2 + x[:, t]
            h = new if mask is None else ops.where(mask[:, t, None], new, h)
            outputs.append(self.head(h))
        return ops.stack(outputs, axis=1), (h,)


def ready(model, *inputs):
    """The model, built for tokens, with weights that are the same on all backends.

    They are large, so that tokens and positions matter more to the logits than biases do.
    """
    if not model.built:
        model(*inputs or [keras.KerasTensor((1, 2), "int32")])
    rng = np.random.default_rng(9)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape) * (1.0 if len(weight.shape) > 1 else 0.3))
    return model


def functional(*layers):
    """A functional model of tokens: an embedding, layers, a head."""
    tokens = keras.Input((None,), dtype="int32")
    h = keras.layers.Embedding(VOCABULARY, WIDTH)(tokens)
    for layer in layers:
        h = layer(h)
    return ready(keras.Model(tokens, keras.layers.Dense(VOCABULARY)(h)))


def uncached(call, prompts, count, sampler, *, seed=0, end_token=None, pad_token=0):
    """New tokens `(B, count)` of a causal model, whose whole pass runs anew for each.

    Args:
        call: Function of tokens `(B, L)` that returns logits `(B, L, V)`.
        prompts: List of lists.
        count: Number of new tokens.
        sampler: A sampler of `kattn.generation`.
        seed: Its seed.
        end_token: Token that ends a sequence.
        pad_token: Token that stands behind an end.
    """
    start = np.array([len(row) for row in prompts], "int32")
    # A new function: JAX finds what it compiled by the function, with the weights of that time.
    length, logits_of = start.copy(), quick(lambda tokens: call(tokens))
    tokens = np.zeros((len(prompts), max(start) + count), "int32")
    for b, row in enumerate(prompts):
        tokens[b, : len(row)] = row
    state, done = sampler.initial_state(), np.zeros(len(prompts), bool)
    found = np.full((len(prompts), count), pad_token, "int32")
    choose = quick(lambda *x: sampler.next_tokens(x[0], History(*x[1:3]), *x[3:], state)[0])
    for step in range(count):
        logits = run(logits_of, ops.convert_to_tensor(tokens))[np.arange(len(prompts)), length - 1]
        given = (tokens, length, np.int32(seed), np.int32(step))
        new = run(choose, ops.convert_to_tensor(logits), *map(ops.convert_to_tensor, given))
        for b in np.flatnonzero(~done):
            found[b, step] = tokens[b, length[b]] = new[b]
            length[b] += 1
            done[b] = new[b] == end_token
    return found
