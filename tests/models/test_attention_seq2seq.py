import functools
import itertools

import keras
import numpy as np
import pytest
from keras import ops

import kattn
from kattn.generation import BeamSearch
from kattn.layers import AdditiveScore, explain_loops
from kattn.models import AttentionSeq2Seq
from tests import attention_rnn_oracle as oracle
from tests.checks import check_dropout, check_fixture, check_training, plain, ready
from tests.compute import assert_close, result, run
from tests.decode_checks import check_decodes
from tests.transformer_oracle import under, weights_of

WIDTH = 6
TARGET = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]], "int32")  # of 11
SOURCE = np.array([[2, 7, 1, 8], [2, 8, 1, 8], [4, 5, 9, 0]], "int32")
PAIR = [SOURCE, TARGET]
KEEP_TARGET = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
KEEP_SOURCE = np.array([[1, 1, 0, 1], [0] * 4, [1] * 4], bool)
CASES = {
    "bahdanau": {"cell": "gru"},
    "bahdanau, two layers": {"num_layers": 2, "cell": "gru"},
    "luong": {"attention": "general", "attend": "after", "num_layers": 2},
    "feeding": {
        "attention": "dot",
        "attend": "after",
        "input_feeding": True,
        "num_layers": 2,
        "bidirectional": False,
        "tie_embeddings": False,
    },
    "heads": {"attention": "multi_head", "num_heads": 2, "attend": "after", "cell": "gru"},
    "none": {"attention": None, "num_layers": 2, "target_vocabulary_size": 13},
}


def seq2seq(vocabulary_size=11, num_layers=1, width=WIDTH, **options):
    return AttentionSeq2Seq(vocabulary_size, num_layers, width, **options)


def made(name):
    return ready(functools.partial(seq2seq, **CASES[name]), PAIR)


def layer_of(w, kind, x, keep, states=None):
    """Outputs `(T, U)` of one recurrent layer for one item, and its last states."""
    units = w["recurrent_kernel"].shape[0]
    states = [np.zeros(units)] * (2 if kind == "lstm" else 1) if states is None else states
    outputs = []
    for row, real in zip(x, keep, strict=True):
        h = states[0]
        if real:
            h, states = oracle.CELLS[kind](w, row, states)
        outputs.append(h)
    return np.stack(outputs), states


def encoded(w, kind, x, keep, bidirectional, count):
    """Outputs of the encoder for one item, and its last hidden state."""
    for i in range(count):
        if not bidirectional:
            x, states = layer_of(under(w, f"encoder/layer{i}/lstm_cell"), kind, x, keep)
            last = states[0]
            continue
        parts = {}
        for way in ("forward", "backward"):
            name = next(k for k in w if k.startswith(f"encoder/layer{i}/{way}_"))
            turn = slice(None, None, -1 if way == "backward" else 1)
            own = under(w, name.rsplit("/", 1)[0])
            y, states = layer_of(own, kind, x[turn], keep[turn])
            parts[way] = y[turn], states[0]
        x, last = (np.concatenate(pair, axis=-1) for pair in zip(*parts.values(), strict=True))
    return x, last


def decoded(w, case, x, keep, memory, keep_memory, last, states):
    """Outputs of the decoder for one item, and the weights `(T, N, S)`."""
    kind = case.get("cell", "lstm")
    count, names = case.get("num_layers", 1), f"{kind}_cell"
    if case.get("attention", "additive") is None:
        x = np.concatenate([x, np.repeat(last[None], len(x), 0)], axis=-1)
        for i in range(count):
            x, _ = layer_of(under(w, f"decoder/layer{i}/{names}"), kind, x, keep, states[i])
        return x, None
    if case.get("attend") == "after" and not case.get("input_feeding"):
        for i in range(count - 1):
            x, _ = layer_of(under(w, f"decoder/layer{i}/{names}"), kind, x, keep, states[i])
        states = states[count - 1 :]
    return attending(w, case, kind, x, keep, memory, keep_memory, states)


def attending(w, case, kind, x, keep, memory, keep_memory, states):
    """Outputs and weights of the layers that wait for what was attended to."""
    feeding, after = case.get("input_feeding", False), case.get("attend") == "after"
    own = under(w, "attending/step")
    cells = [under(own, f"cell/cell{i}") for i in range(len(states))]
    if len(states) == 1:
        cells = [oracle.part(own, next(iter({k.split("/")[0] for k in own if "cell" in k})))]
    score = {"multi_head": "heads"}.get(case.get("attention"), case.get("attention", "additive"))
    options = {"score": score, "heads": case.get("num_heads", 1)}
    fed, outputs, maps = np.zeros(WIDTH), [], []
    attend = functools.partial(
        oracle.attend, own, h=memory, allowed=keep_memory, places=None, count=None,
        before=None, options=options,
    )  # fmt: skip
    for row, real in zip(x, keep, strict=True):
        if not real:
            outputs.append(np.zeros(WIDTH))
            maps.append(np.zeros((options["heads"], len(memory))))
            continue
        context, weights = (None, None) if after else attend(s=states[-1][0])
        h = np.concatenate([row, *([fed] if feeding else []), *([] if after else [context])])
        for i, cell in enumerate(cells):
            h, states[i] = oracle.CELLS[kind](cell, h, states[i])
        if after:
            context, weights = attend(s=h)
        fed = np.tanh(np.concatenate([context, h]) @ own["combine/kernel"])
        outputs.append(fed)
        maps.append(weights)
    return np.stack(outputs), np.stack(maps)


def expected(model, case, source, target, keep_source, keep_target):
    """Logits `(B, T, V)` and alignments `(B, N, T, S)`."""
    w = weights_of(model)
    tables = sorted(k for k in w if k.endswith("tokens/embeddings"))
    of_source = w["source/tokens/embeddings"]
    of_target = w["target/tokens/embeddings"] if len(tables) > 1 else of_source
    kind, count = case.get("cell", "lstm"), case.get("num_layers", 1)
    parts, logits, maps = 2 if kind == "lstm" else 1, [], []
    for b in range(len(source)):
        x = of_source[np.where(keep_source[b], source[b], 0)]
        memory, last = encoded(w, kind, x, keep_source[b], case.get("bidirectional", True), count)
        first = np.tanh(last @ w["bridge/kernel"] + w["bridge/bias"])
        first = np.split(first, count * parts)
        states = [first[i * parts : (i + 1) * parts] for i in range(count)]
        y = of_target[np.where(keep_target[b], target[b], 0)]
        h, weights = decoded(w, case, y, keep_target[b], memory, keep_source[b], last, states)
        logits.append(h @ w.get("head/kernel", of_target.T))
        maps.append(weights)
    return np.stack(logits), None if maps[0] is None else np.swapaxes(np.stack(maps), 1, 2)


@pytest.mark.parametrize("name", CASES)
def test_matches_oracle(name):
    model, case = made(name), CASES[name]
    everything = np.ones_like(KEEP_SOURCE), np.ones_like(KEEP_TARGET)
    logits, maps = expected(model, case, *PAIR, *everything)
    assert_close(result(model, PAIR), logits)
    given = [np.where(KEEP_SOURCE, SOURCE, -1), np.where(KEEP_TARGET, TARGET, 99)]
    masks = (KEEP_SOURCE, KEEP_TARGET)
    found = result(model, given, mask=masks)
    wanted, some = expected(model, case, *PAIR, *masks)
    assert_close(found[KEEP_TARGET], wanted[KEEP_TARGET])
    if maps is not None:
        assert_close(result(model.attention_weights, PAIR), maps)
        assert_close(result(model.attention_weights, given, mask=masks), some)


def test_padding_token_is_that_of_the_source():
    """At either side; a target may begin with it."""
    model = ready(functools.partial(seq2seq, padding_token=0), PAIR)
    target = np.pad(TARGET[:, :3], [(0, 0), (1, 0)])
    wanted = result(model, [SOURCE[:, :3], target])
    for sides in ((0, 2), (2, 0)):
        found = result(model, [np.pad(SOURCE[:, :3], [(0, 0), sides]), target])
        assert_close(found, wanted)
    changed = target.copy()
    changed[:, 0] = 1
    assert np.abs(result(model, [SOURCE[:, :3], changed]) - wanted).max() > 1e-2


@pytest.mark.parametrize("name", ["bahdanau, two layers", "luong", "feeding", "none"])
def test_decoding(name):
    """Of a target, step by step, by a source that is encoded once."""

    def call(model, target, source, context_mask=None):
        return model((source, target), mask=(context_mask, None))

    check_decodes(lambda: made(name), [TARGET, SOURCE], call)


def test_generates():
    """Greedily the likeliest token each time; a beam of one the same, and a wider one no worse."""
    model = made("bahdanau")
    prompts = TARGET[:, :1]
    found = kattn.generate(model, prompts, 3, context=SOURCE)
    tokens = prompts
    for _ in range(3):
        logits = result(model, [SOURCE, tokens])
        tokens = np.concatenate([tokens, logits[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(found, tokens[:, 1:])
    one = kattn.generate(model, prompts, 3, context=SOURCE, sampler=BeamSearch(1))
    np.testing.assert_array_equal(one, found)
    wide = kattn.generate(model, prompts, 3, context=SOURCE, sampler=BeamSearch(3))

    def likelihood(new):
        logits = result(model, [SOURCE, np.concatenate([prompts, new[:, :-1]], axis=1)])
        logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(logits, new[..., None], axis=2).sum((1, 2))

    assert (likelihood(wide) >= likelihood(found) - 1e-5).all()


def full(**options):
    """As far off its defaults as it goes."""
    dtype = {"dtype": options["dtype"]} if "dtype" in options else {}
    given = {
        "num_layers": 2,
        "attention": AdditiveScore(5, **dtype),
        "attend": "after",
        "input_feeding": False,
        "cell": "gru",
        "bidirectional": True,
        "target_vocabulary_size": 13,
        "tie_embeddings": False,
        "padding_token": 10,
        "dropout": 0.2,
        "seed": 5,
    }
    return seq2seq(**{**given, **options})


def test_one_step_of_fit_trains_all():
    check_training(full, PAIR)


def test_training_computes_what_inference_does():
    """Where a library runs the loop over the steps, in training as well as without it.

    The other model runs Keras's own loop, forward and backward.
    """
    model, other = made("none"), made("none")
    other.set_weights(model.get_weights())
    for layer in other._flatten_layers():
        if isinstance(layer, keras.layers.LSTM):
            layer.use_cudnn = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = []
    for each in (model, other):
        each.compile(keras.optimizers.SGD(0.5), loss)
        trained = each.fit(PAIR, TARGET, batch_size=3, epochs=3, shuffle=False, verbose=0)
        losses.append([*trained.history["loss"], each.evaluate(PAIR, TARGET, verbose=0)])
    assert all(after < before - 0.005 for before, after in itertools.pairwise(losses[0]))
    assert_close(losses[0], losses[1], 1e-4)
    for weight, known in zip(model.get_weights(), other.get_weights(), strict=True):
        assert_close(weight, known, 1e-4)


def test_dropout():
    class Called(keras.layers.Layer):
        """The model as a layer of two arguments."""

        def __init__(self):
            super().__init__()
            self.model = full()

        def build(self, source_shape, target_shape):
            self.model.build([source_shape, target_shape])

        def call(self, source, target, training=None):
            return self.model((source, target), training=training)

    check_dropout(lambda: Called(), PAIR)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("options", [{}, {"attend": "after", "input_feeding": True}])
def test_layers_that_wait_for_each_other_have_dropout_between_them(rng, num_layers, options):
    """Of the layers in the one that attends all but the first drop channels, and by the seed."""
    model = seq2seq(num_layers=num_layers, dropout=0.5, seed=3, **options)
    model.build([x.shape for x in PAIR])
    x, memory = rng.normal(size=(2, 3, 4, WIDTH)).astype("float32")
    still = run(lambda: model._attending(x, memory, training=False))
    dropped = run(lambda: model._attending(x, memory, training=True))
    assert (np.abs(dropped - still).max() > 1e-3) == (num_layers == 2)
    again = AttentionSeq2Seq.from_config(model.get_config())
    again.build([x.shape for x in PAIR])
    again.set_weights(model.get_weights())
    assert_close(run(lambda: again._attending(x, memory, training=True)), dropped)


def test_models_of_other_backends():
    check_fixture(full, "attention_seq2seq")


def test_config():
    model = ready(full, PAIR)
    again = AttentionSeq2Seq.from_config(model.get_config())
    assert plain(again.get_config()) == plain(model.get_config())
    again.build([x.shape for x in PAIR])
    again.set_weights(model.get_weights())
    assert_close(result(again, PAIR), result(model, PAIR))


def test_half_precision():
    reference = ready(full, PAIR)
    model = ready(functools.partial(full, dtype="mixed_bfloat16"), PAIR)
    model.set_weights(reference.get_weights())
    found = model(PAIR)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    assert_close(run(ops.cast, found, "float32"), result(reference, PAIR), 6e-2)


BAD = {
    "heads": ({"num_heads": 2}, "`num_heads` must be given for.*num_heads=2, attention='additive'"),
    "no heads": ({"attention": "multi_head"}, "`num_heads` must be given for.*num_heads=None"),
    "name": ({"attention": "dots"}, "`attention` must be one of dot, .*multi_head.*'dots'"),
    "none": ({"attention": None, "attend": "after"}, "`attend` and `input_feeding` must be left"),
    "cell": ({"cell": "rnn"}, "`cell` must be one of lstm, gru.*cell='rnn'"),
    "width": ({"width": 5}, "`width` must be even where layers are bidirectional.*width=5"),
    "layers": ({"num_layers": 0}, "`num_layers` must be an integer >= 1.*num_layers=0"),
    "dropout": ({"dropout": 1.0}, "`dropout` must be a fraction"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        seq2seq(**options)


def test_bad_input():
    with pytest.raises(ValueError, match=r"`source` must have rank 2"):
        seq2seq()([SOURCE[0], TARGET])
    with pytest.raises(ValueError, match=r"`target` must have rank 2"):
        seq2seq()([SOURCE, TARGET[..., None]])
    with pytest.raises(ValueError, match=r"no attention weights.*attention=None"):
        made("none").attention_weights(PAIR)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="other loops are compiled")
def test_layers_that_do_not_attend_run_the_loop_of_the_framework():
    """Those of the encoder, in both directions, and the decoder's below the one that attends."""
    model = AttentionSeq2Seq(11, 2, 8, attend="after", cell="gru")
    model.build(((None, 4), (None, 5)))
    loops = [each.loop for each in explain_loops(model)]
    assert loops
    assert set(loops) == {"torch.gru"}
