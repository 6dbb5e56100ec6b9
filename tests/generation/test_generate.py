import gc
import weakref

import keras
import numpy as np
import pytest

import kattn
from kattn import layers
from kattn.generation import (
    BeamSearch,
    GreedySampler,
    PrefixCache,
    RandomSampler,
    RepetitionPenalty,
    Temperature,
    TopK,
    generate,
)
from kattn.generation.generate import LONG
from kattn.models import TransformerLM, TransformerSeq2Seq
from tests.generation_models import VOCABULARY, Decoder, Recurrent, ready, uncached

PROMPTS = [[3, 1, 4], [1], [5, 9]]
SAMPLER = RandomSampler([RepetitionPenalty(1.3), Temperature(0.7), TopK(6)])
MODELS = {
    "alibi": lambda: Decoder(layers.ALiBi()),
    "learned": lambda: TransformerLM(VOCABULARY, 1, 2, 8, position=layers.LearnedPositions(16)),
}


def padded(prompts, left):
    """The prompts as an array that is padded at a side, and which tokens are real."""
    tokens, real = np.full((len(prompts), 4), 7, "int32"), np.zeros((len(prompts), 4), bool)
    for b, row in enumerate(prompts):
        at = slice(4 - len(row), 4) if left else slice(0, len(row))
        tokens[b, at], real[b, at] = row, True
    return tokens, real


@pytest.fixture(scope="module")
def model():
    return ready(Recurrent())


@pytest.mark.parametrize("name", MODELS)
def test_equals_generation_without_a_cache(name):
    model = ready(MODELS[name]())
    found = generate(model, PROMPTS, 5, sampler=SAMPLER, seed=3)
    np.testing.assert_array_equal(found, uncached(model, PROMPTS, 5, SAMPLER, seed=3))
    assert found.dtype == "int32"
    assert len(np.unique(found)) > 2


def test_many_tokens_begin_as_few(model):
    """TensorFlow compiles both in other ways, which must draw the same numbers."""
    found = generate(model, PROMPTS, LONG, sampler=SAMPLER, seed=3)
    assert found.shape == (3, LONG)
    np.testing.assert_array_equal(
        found[:, :9], generate(model, PROMPTS, 9, sampler=SAMPLER, seed=3)
    )


def compilations(model):
    """How often `decode` was compiled: PyTorch compiles single steps, and not prompts."""
    is_torch = keras.backend.backend() == "torch"
    return model.traces.count(1) if is_torch else len(model.traces)


def test_ends_and_streams_with_one_compilation():
    """Padded at either side, streamed, with other weights: all by the functions compiled first."""
    model = ready(Decoder(layers.RotaryEmbedding()))
    plain = uncached(model, PROMPTS, 5, GreedySampler())
    options = {"end_token": int(plain[0, 2]), "pad_token": 9}

    def expected(prompts):
        return uncached(model, prompts, 5, GreedySampler(), **options)

    tokens, real = padded(PROMPTS, left=True)
    wanted = expected(PROMPTS)
    assert (wanted != plain).any(), "no sequence ends early"
    np.testing.assert_array_equal(generate(model, tokens, 5, mask=real, **options), wanted)
    traces, steps = compilations(model), []
    tokens, real = padded(PROMPTS, left=False)
    found = generate(model, tokens, 5, mask=real, on_tokens=steps.append, **options)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.stack(steps, axis=1), wanted[:, : len(steps)])
    model.set_weights([np.roll(w, 3, axis=-1) for w in model.get_weights()])
    others = [[8], [2, 2], [6, 1, 0]]
    tokens, real = padded(others, left=False)
    found = generate(model, tokens, 5, mask=real, **options)
    np.testing.assert_array_equal(found, expected(others))
    assert (found != wanted).any()
    assert compilations(model) == traces, "other weights or prompts were compiled anew"


def test_stops_when_all_have_ended(model):
    """Only then, and before `max_new_tokens`."""
    plain, steps = uncached(model, [[3, 1]], 2, GreedySampler()), []
    end = int(plain[0, 1])
    found = generate(model, [[3, 1]], 40, end_token=[end], on_tokens=steps.append, pad_token=9)
    assert len(steps) == 1 + (plain[0, 0] != end)
    np.testing.assert_array_equal(found[0, len(steps) :], 9)
    assert found.shape == (1, 40)


def draw(model, seed, **options):
    return generate(
        model, [[3, 1]] * 3, 6, sampler=RandomSampler([Temperature(3.0)]), seed=seed, **options
    )


def test_seeds(model):
    first = draw(model, 1)
    np.testing.assert_array_equal(draw(model, 1), first)
    assert (draw(model, 2) != first).any()
    assert (first[0] != first[1]).any(), "rows draw the same"
    keras.utils.set_random_seed(0)
    free = draw(model, None)
    assert (draw(model, None) != free).any()
    keras.utils.set_random_seed(0)
    np.testing.assert_array_equal(draw(model, None), free)


def with_source(model):
    """A function of sources that returns a function of tokens: the call of the model."""
    if isinstance(model, Recurrent):
        return lambda source: lambda tokens: model(tokens, source)
    return lambda source: lambda tokens: model((source, tokens))


@pytest.mark.parametrize("kind", ["recurrent", "sequence to sequence"])
def test_a_context(kind):
    tokens = keras.KerasTensor((2, 3), "int32")
    if kind == "recurrent":
        model = ready(Recurrent(), tokens, tokens)
    else:
        model = ready(TransformerSeq2Seq(VOCABULARY, 1, 2, 8), (tokens, tokens))
    context = np.array([[2, 5, 6], [1, 1, 8]], "int32")
    keep = np.array([[True] * 3, [True, True, False]])
    found = generate(
        model, [[3, 1], [4]], 4, context=context, context_mask=keep, seed=1, sampler=SAMPLER
    )
    for b in range(2):  # each with its context alone; draws are those of the whole batch
        some = context[b : b + 1, : keep[b].sum()].repeat(2, axis=0)
        expected = uncached(with_source(model)(some), [[3, 1], [4]], 4, SAMPLER, seed=1)
        np.testing.assert_array_equal(found[b], expected[b])


def test_progress(model, capsys):
    found = draw(model, 1)
    capsys.readouterr()
    np.testing.assert_array_equal(draw(model, 1, progress=True), found)
    assert "6/6" in capsys.readouterr().out


def test_a_model_is_collectable():
    model = ready(Recurrent())
    generate(model, [[3, 1]], 3)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


BAD = {
    "count": ({"max_new_tokens": -1}, r"`max_new_tokens` must be an integer >= 0"),
    "seed": ({"seed": -1}, r"`seed` must be an integer >= 0"),
    "end": ({"end_token": 1.5}, r"`end_token` must be an integer >= 0.*end_token=1\.5"),
    "sampler": ({"sampler": "greedy"}, r"`sampler` must be a sampler.*'greedy'"),
    "stream": ({"sampler": BeamSearch(2), "on_tokens": print}, r"Beam search gives its tokens at"),
    "room": ({"cache": PrefixCache(4)}, r"`cache` must have room.*length=4, needed=5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        generate(Decoder(), **{"prompts": [[3, 1]], "max_new_tokens": 3, **options})


@pytest.mark.parametrize("sampler", [None, BeamSearch(2)])
@pytest.mark.parametrize("name", ["pad_token", "end_token"])
def test_tokens_that_the_model_does_not_have(model, name, sampler):
    """Also where the prompts are padded with one."""
    message = (
        rf"`{name}` must be a token of the model.* in \[0, {VOCABULARY}\).*{name}={VOCABULARY}"
    )
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS, 2, sampler=sampler, **{name: VOCABULARY})


def test_a_model_that_cannot_decode():
    class Model(keras.Model):
        pass

    with pytest.raises(ValueError, match=r"`model` must have `init_cache` and `decode`"):
        generate(Model(), [[3, 1]], 3)


def test_is_exported():
    assert kattn.generate is generate
