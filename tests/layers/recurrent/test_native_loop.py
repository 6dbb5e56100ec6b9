"""Keras's LSTM and GRU with PyTorch's own loop: what they compute, and which loop it was."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import explain_loops
from kattn.layers.recurrent import native_loop
from kattn.layers.recurrent.native_loop import use_native_loops
from tests.checks import shake
from tests.compute import assert_close, compiled, differentiate, quick, run
from tests.layers.recurrent import rnn_oracle

ON_TORCH = keras.backend.backend() == "torch"
on_torch = pytest.mark.skipif(not ON_TORCH, reason="other frameworks compile Keras's loop")
KINDS = ("LSTM", "GRU")
# None, left, right, holes, all, holes at the ends.
KEEP = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 0],
    ],
    bool,
)
OPTIONS = {
    "plain": {},
    "backwards": {"go_backwards": True},
    "zeros": {"zero_output_for_mask": True},
    "backwards, zeros": {"zero_output_for_mask": True, "go_backwards": True},
    "last": {"return_sequences": False},
    "last, zeros": {"return_sequences": False, "zero_output_for_mask": True},
    "no bias": {"use_bias": False},
}


def tolerance(device):
    """cuDNN rounds elsewhere than PyTorch's own operations."""
    return 3e-5 if device == "cuda" else 1e-5


def inputs(rng):
    """A sequence `(6, 6, 4)`, and states."""
    x = rng.normal(size=(6, 6, 4)).astype("float32")
    return x, [rng.normal(size=(6, 3)).astype("float32") for _ in range(2)]


def pair(kind, **options):
    """Two layers with the same weights: as Keras has it, and with the framework's own loop."""
    options = {"return_sequences": True, "return_state": True, **options}
    options["recurrent_initializer"] = "glorot_uniform"  # Keras's own knows no half precision
    layer = getattr(keras.layers, kind)(3, **options)
    layer.build((6, 6, 4))
    shake(layer)
    native = type(layer)(3, **options)
    native.build((6, 6, 4))
    native.set_weights(layer.get_weights())
    use_native_loops(native)
    return layer, native


@pytest.fixture
def calls(monkeypatch):
    """What loops of the framework's own have run."""
    found = []

    def counted(kind, *args):
        found.append(kind)
        return before(kind, *args)

    before = native_loop.native_rnn
    monkeypatch.setattr(native_loop, "native_rnn", counted)
    return found


def call(layer, x, keep=None, states=None):
    options = {} if keep is None else {"mask": ops.convert_to_tensor(keep)}
    if states is not None:
        states = states[: len(layer.state_size)]
        options["initial_state"] = [ops.convert_to_tensor(s) for s in states]
    return run(quick(lambda x: layer(x, **options)), ops.convert_to_tensor(x))


@on_torch
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_keras_and_as_the_oracle(rng, device, calls, kind, case):
    (layer, native), (x, states) = pair(kind, **OPTIONS[case]), inputs(rng)
    backwards, zeros = native.go_backwards, native.zero_output_for_mask
    for keep in (None, KEEP):
        for initial in (None, states):
            found, expected = (call(each, x, keep, initial) for each in (native, layer))
            for have, want in zip(found, expected, strict=True):
                assert_close(have, want, tolerance(device))
            options = {"keep": keep, "initial": initial, "backwards": backwards}
            y, last = rnn_oracle.rnn(kind, x, native.get_weights(), **options)
            if keep is not None and zeros:
                y = y * (keep[:, ::-1] if backwards else keep)[..., None]
            y = y if native.return_sequences else y[:, -1]
            for have, want in zip(found, [y, *last], strict=True):
                assert_close(have, want, tolerance(device))
    assert calls == [kind.lower()] * 4


@on_torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_holds_the_state_exactly(rng, kind, dtype):
    """Through many steps, with large weights, biases and states, and whatever stands there."""
    _, native = pair(kind, dtype=dtype)
    native.set_weights([10 * w for w in native.get_weights()])
    x = np.full((2, 300, 4), np.nan)
    x[:, :2] = rng.normal(size=(2, 2, 4))
    keep = np.zeros((2, 300), bool)
    keep[:, :2] = True
    x, keep = ops.convert_to_tensor(x, dtype), ops.convert_to_tensor(keep)
    states = [5 * rng.normal(size=(2, 3)) for _ in native.state_size]
    states = [ops.convert_to_tensor(s, dtype) for s in states]
    y, *last = native(x, mask=keep, initial_state=states)
    assert (y[:, 2:] == y[:, 1:2]).all()
    assert (last[0] == y[:, 1]).all()
    short, *wanted = native(x[:, :2], initial_state=states)
    for have, want in zip((y[:, 1], *last), (short[:, 1], *wanted), strict=True):
        assert keras.backend.standardize_dtype(have.dtype) == dtype
        limit = {"float16": 1e-3, "bfloat16": 1e-2}.get(dtype, 1e-6)
        assert_close(run(ops.cast, have, "float32"), run(ops.cast, want, "float32"), limit)
    nothing = native(x, mask=ops.zeros_like(keep), initial_state=states)
    assert (nothing[0] == 0).all()
    assert all((have == want).all() for have, want in zip(nothing[1:], states, strict=True))


@on_torch
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(rng, calls, kind, policy):
    layer, native = pair(kind, dtype=policy)
    x, _ = inputs(rng)
    for have, want in zip(call(native, x, KEEP), call(layer, x, KEEP), strict=True):
        assert have.dtype == want.dtype
        assert_close(have, want, 2e-3 if policy == "mixed_float16" else 2e-2)
    assert calls == [kind.lower()]


@on_torch
@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(rng, device, kind, keep):
    """Of inputs, states and weights, in a sum of two calls; and nothing flows from padding."""
    x, states = inputs(rng)
    found = []
    for layer in pair(kind):
        own = states[: len(layer.state_size)]
        seeds = [seed.value for seed in layer.non_trainable_variables]

        def total(x, *rest, layer=layer, seeds=seeds):
            states, weights = rest[:-3], rest[-3:]
            mask = None if keep is None else ops.convert_to_tensor(keep)
            options = {"mask": mask, "initial_state": list(states)}
            first, _ = layer.stateless_call(list(weights), seeds, x, **options)
            again, _ = layer.stateless_call(list(weights), seeds, x * x, mask=mask)
            return sum(ops.sum(ops.sin(2 * each)) for each in (*first, *again))

        upstream = np.ones(())
        found.append(differentiate(total, [x, *own, *layer.get_weights()], upstream))
    (output, gradients), (wanted, wanted_gradients) = found[1], found[0]
    assert_close(output, wanted, tolerance(device))
    for have, want in zip(gradients, wanted_gradients, strict=True):
        assert_close(have, want, tolerance(device))
    if keep is not None:
        assert (gradients[0][~keep] == 0).all()


def explained(layer):
    return [tuple(each) for each in explain_loops(layer)]


REASONS = {
    "activation": ("LSTM", {"activation": "relu"}, "activation is not tanh"),
    "recurrent": ("GRU", {"recurrent_activation": "relu"}, "recurrent_activation is not sigmoid"),
    "reset": ("GRU", {"reset_after": False}, "reset_after is False"),
    "recurrent dropout": ("LSTM", {"recurrent_dropout": 0.5}, "there is recurrent_dropout"),
    "dropout of gates": (
        "GRU",
        {"dropout": 0.5, "implementation": 1},
        "with implementation=1 there is dropout for each gate",
    ),
    "unroll": ("LSTM", {"unroll": True}, "unroll=True asks for Keras's own"),
    "use_cudnn": ("GRU", {"use_cudnn": False}, "use_cudnn=False asks for Keras's own"),
    "other": ("SimpleRNN", {}, "there is no loop for SimpleRNNCell"),
}


@on_torch
@pytest.mark.parametrize("case", REASONS)
def test_what_has_no_kernel_takes_the_loop_of_keras(rng, calls, case):
    kind, options, reason = REASONS[case]
    layer, native = pair(kind, **options)
    ((_, loop, why),) = explained(native)
    assert (loop, why) == ("keras", reason)
    x, states = inputs(rng)
    found, expected = call(native, x, KEEP, states), call(layer, x, KEEP, states)
    for have, want in zip(found, expected, strict=True):
        assert_close(have, want)
    assert not calls


@on_torch
def test_a_change_of_mind_counts(rng, calls):
    """What decides is how the layer is when it is called."""
    _, native = pair("LSTM")
    native.unroll = True
    assert explained(native)[0][1] == "keras"
    call(native, inputs(rng)[0])
    assert not calls


class OwnCell(keras.layers.LSTMCell):
    """May compute something else."""


class OwnLoop(keras.layers.LSTM):
    """Goes its own way."""

    def inner_loop(self, *args, **kwargs):
        return super().inner_loop(*args, **kwargs)


@on_torch
def test_subclasses_keep_what_they_do():
    layers = keras.layers.RNN(OwnCell(3)), OwnLoop(3), keras.layers.RNN([OwnCell(3), OwnCell(3)])
    for layer in layers:
        use_native_loops(layer)
    reasons = [explained(layer)[0][2] for layer in layers]
    assert reasons == [
        "there is no loop for OwnCell",
        "OwnLoop has an inner loop of its own",
        "there is no loop for StackedRNNCells",
    ]


@on_torch
def test_a_cell_in_an_rnn_layer(rng, calls):
    layer = keras.layers.RNN(keras.layers.GRUCell(3), return_sequences=True)
    x, _ = inputs(rng)
    expected = call(layer, x, KEEP)
    assert explained(layer) == [(layer.name, "keras", "no layer of kattn holds it")]
    use_native_loops(layer)
    assert explained(layer) == [(layer.name, "torch.gru", None)]
    assert_close(call(layer, x, KEEP), expected)
    assert calls == ["gru"]


@on_torch
@pytest.mark.parametrize("merge", ["concat", "mul"])
def test_bidirectional(rng, device, calls, merge):
    x, _ = inputs(rng)
    inner = keras.layers.LSTM(3, return_sequences=True)
    layer = keras.layers.Bidirectional(inner, merge_mode=merge)
    layer.build(x.shape)
    shake(layer)
    expected = call(layer, x), call(layer, x, KEEP)
    use_native_loops(layer)
    assert [each.loop for each in explain_loops(layer)] == ["torch.lstm"] * 2
    for keep, want in zip((None, KEEP), expected, strict=True):
        assert_close(call(layer, x, keep), want, tolerance(device))
    # On a GPU Keras itself runs both directions by one call of cuDNN, if there is no mask.
    assert calls == ["lstm"] * (2 if device == "cuda" else 4)


@on_torch
def test_stateful(rng):
    """One call goes on where the last one ended."""
    x, _ = inputs(rng)
    layer, native = (each for each in pair("LSTM", stateful=True))
    for _ in range(2):
        found, expected = native(x, mask=ops.convert_to_tensor(KEEP)), layer(x, mask=KEEP)
        for have, want in zip(found, expected, strict=True):
            assert_close(run(lambda have=have: have), run(lambda want=want: want))
    assert np.abs(run(ops.copy, native.states[1])).max() > 0


@on_torch
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_that_of_keras(kind):
    """The same mask at all steps, drawn as Keras draws it, in training alone."""
    x, results = ops.ones((6, 6, 4)), []
    for layer in pair(kind, dropout=0.5, seed=3):
        calls = {"calm": False, "first": True, "second": True}
        results.append({name: run(layer, x, training=is_on) for name, is_on in calls.items()})
        first = results[-1]["first"][0]
        assert np.abs(first - results[-1]["calm"][0]).max() > 1e-3
        assert np.abs(first - results[-1]["second"][0]).max() > 1e-3
    for name, found in results[1].items():
        for have, want in zip(found, results[0][name], strict=True):
            assert_close(have, want)


@on_torch
@pytest.mark.parametrize("kind", KINDS)
def test_compiled(rng, kind):
    """With a mask and gradients; on PyTorch the loop is one node, however many steps there are."""
    _, native = pair(kind, return_state=False)
    x = rng.normal(size=(2, 9, 4)).astype("float32")
    keep = ops.convert_to_tensor(np.arange(9) < [[9], [5]])
    function = compiled(lambda x: native(x, mask=keep))
    expected = differentiate(lambda x: native(x, mask=keep), [x], x[..., :3])
    found = differentiate(function, [x], x[..., :3])
    assert_close(found[0], expected[0])
    assert_close(found[1][0], expected[1][0])


@on_torch
@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_in_the_graph(device, kind):
    import torch
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    _, native = pair(kind, return_state=False)
    sizes = []

    def count(graph, examples):
        sizes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    for steps in (20, 40):
        x = torch.ones((2, steps, 4), requires_grad=True, device=device)
        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=count, bw_compiler=count)
        y = torch.compile(native, backend=backend, fullgraph=True)(
            x, mask=torch.ones((2, steps), device=device) > 0
        )
        y.sum().backward()
    forward, backward = sizes[:2]
    assert sizes == [forward, backward] * 2
    assert max(sizes) < 80


@on_torch
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(rng, device, kind):
    """cuDNN has none; both ways around it that `explain_loops` names do."""
    import torch

    from tests.compute import second_derivatives

    x, _ = inputs(rng)
    upstream, direction = rng.normal(size=(6, 6, 3)), rng.normal(size=x.shape)

    def second(layer):
        mask = ops.convert_to_tensor(KEEP)
        return second_derivatives(lambda x: layer(x, mask=mask), [x], upstream, [direction])[0]

    layer, native = pair(kind, return_state=False)
    expected = second(layer)
    if device == "cuda":
        with pytest.raises(NotImplementedError, match="Double backwards is not supported"):
            second(native)
    else:
        assert_close(second(native), expected)
    with torch.backends.cudnn.flags(enabled=False):
        assert_close(second(native), expected, tolerance(device))
    native.use_cudnn = False
    assert_close(second(native), expected, tolerance(device))


@on_torch
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_transformations_the_loop_of_keras_runs(rng, calls, kind):
    import torch

    _, native = pair(kind, return_state=False)
    x, _ = inputs(rng)
    x = ops.convert_to_tensor(x)
    with torch.no_grad():
        expected = native(x)
        calls.clear()
        each = torch.func.vmap(lambda x: native(x[None])[0])(x)
        value, tangent = torch.func.jvp(native, (x,), (torch.ones_like(x),))
        assert not calls
        assert torch.allclose(each, expected, atol=1e-5)
        assert torch.allclose(value, expected, atol=1e-5)
        moved = (native(x + 1e-2) - native(x - 1e-2)) / 2e-2
        assert torch.allclose(tangent, moved, atol=1e-2)


@pytest.fixture
def exported(rng, tmp_path):
    """A function that writes a model of a layer and a mask, of any length or of nine steps."""

    def export(native, name, steps, **options):
        nodes = keras.Input((steps, 4)), keras.Input((steps,), dtype="bool")
        model = keras.Model(nodes, native(nodes[0], mask=nodes[1]))
        given = [rng.normal(size=(2, 9, 4)).astype("float32"), rng.random((2, 9)) < 0.6]
        expected = run(model, given)
        path = tmp_path / name
        model.export(str(path), verbose=False, **options)
        return path, given, expected

    return export


@on_torch
@pytest.mark.filterwarnings("ignore")  # exporters warn of what they do not support elsewhere
@pytest.mark.parametrize("kind", KINDS)
def test_onnx(exported, kind):
    """For any length, with masks; ONNX has such loops itself."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, native = pair(kind, return_state=False)
    path, given, expected = exported(native, "model.onnx", None, format="onnx")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    assert_close(session.run(None, dict(zip(names, given, strict=True)))[0], expected)
    import onnx

    assert kind in {node.op_type for node in onnx.load(path).graph.node}


@on_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [9, None])
def test_pt2(exported, kind, steps):
    """A file for one length needs no kattn to run; one for any length has our own operation."""
    import torch

    _, native = pair(kind, return_state=False)
    length = torch.export.Dim("length", min=2, max=64)
    options = {} if steps else {"dynamic_shapes": ((({1: length}, {1: length}),),)}
    options["format"] = "torch"
    path, given, expected = exported(native, "model.pt2", steps, **options)
    program = torch.export.load(path)
    targets = {str(node.target) for node in program.graph.nodes}
    assert (f"aten.{kind.lower()}.input" if steps else "kattn.native_rnn.default") in targets
    assert len(program.graph.nodes) < 200
    count = 1 if steps else 2  # the batch sizes that Keras exports for
    inputs = tuple(ops.convert_to_tensor(x[:count]) for x in given)
    with torch.no_grad():
        assert_close(run(program.module(), inputs), expected[:count])


@on_torch
def test_a_copy_has_a_loop_of_its_own(rng):
    _, native = pair("LSTM", return_state=False)
    other = copy.deepcopy(native)
    x, _ = inputs(rng)
    other.set_weights([0 * w for w in other.get_weights()])
    assert (call(other, x) == 0).all()
    assert np.abs(call(native, x)).max() > 0


@pytest.mark.skipif(ON_TORCH, reason="for the others")
@pytest.mark.parametrize("kind", KINDS)
def test_elsewhere_nothing_is_changed(kind):
    _, native = pair(kind)
    ((name, loop, reason),) = explain_loops(native)
    assert (name, loop) == (native.name, "keras")
    assert reason.endswith("compiles Keras's own loop")
    assert native.inner_loop.__func__ is type(native).inner_loop


def test_bad_layer():
    with pytest.raises(ValueError, match=r"`layer` must be a Keras layer; received: layer=3"):
        explain_loops(3)
