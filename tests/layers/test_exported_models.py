"""Files that `model.export` writes: ONNX, and PyTorch's `.pt2`. They give what the layer gives."""

import keras
import numpy as np
import pytest

from kattn import layers
from tests.checks import shake
from tests.compute import assert_close, run
from tests.every_layer import LAYERS, arrays, attention, sequence, symbols

BACKEND = keras.backend.backend()
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="a format of PyTorch")
CASES = {
    **LAYERS,
    "SelfAttention, plain": attention("SelfAttention", causal=True),
    "SelfAttention, all": attention(
        "SelfAttention", position=layers.ALiBi, use_qk_norm=True, softcap=5.0, use_gate=True
    ),
    "SelfAttention, grouped": attention(
        "SelfAttention", position=layers.RotaryEmbedding, num_key_value_heads=1, window=16
    ),
}
# tf2onnx takes up to 15 seconds for a layer: these are a loop in a loop, a scan, and a map.
ON_TENSORFLOW = ("SelfAttention, plain", "GatedLinearAttention, fixed", "SelfAttention2D")
# Some have a LayerNormalization of Keras: `test_a_layer_normalization_of_keras_is_not_exported`.
# PyTorch traces a loop over steps as that many copies of a step, which serve one length only.
NOT_ON_TORCH = {
    "TransformerDecoderBlock",
    "GlobalContext",
    "DeformableAttention2D",
    "SRUPlusPlus",
    "AttentionRNN",
    "LSTMN",
}
ON_TORCH = tuple(
    name for name in CASES if name.split(",")[0] not in NOT_ON_TORCH and name != "SRU, peephole"
)
ONNX = ON_TENSORFLOW if BACKEND == "tensorflow" else ON_TORCH
# Lengths at which kernels loop over several blocks, and chunks.
LONG = {"SelfAttention, plain": 600, "GatedLinearAttention, fixed": 200}
EXPORTER = {"tensorflow": "tf2onnx", "torch": "onnxscript"}
# Exporters warn of what they do not support elsewhere, and of numbers that stay what they are.
pytestmark = pytest.mark.filterwarnings("ignore")


def ready(name, steps):
    """A built layer, a model of it for `steps` steps, and the shapes of its inputs."""
    make, shapes = CASES[name]
    layer, wanted = make(), symbols(shapes, None) if steps is None else shapes(2, steps)
    nodes = [keras.Input(shape[1:]) for shape in wanted]
    model = keras.Model(nodes if len(nodes) > 1 else nodes[0], layer(*nodes))
    shake(layer)
    given = arrays(shapes, batch=2, steps=steps or 5)
    model(given if len(given) > 1 else given[0])  # Keras exports what has been called
    return layer, model, shapes


def onnx_session(path):
    """The outputs of a file of ONNX, as a function of its inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.fixture
def onnx_file(tmp_path):
    for package in ("onnx", "onnxruntime", EXPORTER[BACKEND]):
        pytest.importorskip(package, reason=f"{package} is needed to export to ONNX")
    return str(tmp_path / "model.onnx")


@pytest.mark.skipif(BACKEND == "jax", reason="jax2onnx is not among what the tests install")
@pytest.mark.parametrize("name", ONNX)
def test_onnx_of_unknown_length(name, onnx_file):
    layer, model, shapes = ready(name, None)
    model.export(onnx_file, format="onnx", verbose=False)
    session = onnx_session(onnx_file)
    for batch, steps in ((3, 5), (1, LONG.get(name, 7))):
        inputs = arrays(shapes, batch=batch, steps=steps)
        assert_close(session(*inputs), run(layer, *inputs))


@pytest.mark.skipif(BACKEND == "jax", reason="jax2onnx is not among what the tests install")
def test_onnx_of_known_length(onnx_file):
    """Of so many steps that windows are cut into bands."""
    layer, model, shapes = ready("SelfAttention, grouped", 200)
    model.export(onnx_file, format="onnx", verbose=False)
    inputs = arrays(shapes, batch=2, steps=200)
    assert_close(onnx_session(onnx_file)(*inputs), run(layer, *inputs))


@on_torch
def test_a_layer_normalization_of_keras_is_not_exported(onnx_file):
    """Not for any length, on PyTorch. Once it is, `ON_TORCH` need not leave a block out."""
    x = keras.Input((None, 8))
    model = keras.Model(x, keras.layers.LayerNormalization()(x))
    model(np.ones((1, 3, 8), "float32"))
    with pytest.raises(Exception, match="is not constant"):
        model.export(onnx_file, format="onnx", verbose=False)


@on_torch
def test_onnx_has_no_blocks(onnx_file):
    """An implementation that was asked for is not exchanged for another."""
    x = keras.Input((None, 8))
    model = keras.Model(x, layers.SelfAttention(2, implementation="chunked")(x))
    model(np.ones((1, 3, 8), "float32"))
    with pytest.raises(ValueError, match="traced for any T and S"):
        model.export(onnx_file, format="onnx", verbose=False)


@on_torch
@pytest.mark.parametrize(
    ("names", "steps"),
    [(["SelfAttention"], 600), (["SelfAttention, grouped", "LinearAttention"], None)],
)
# `test_every_layer` traces other layers for any length.
def test_pt2(names, steps, tmp_path):
    import torch

    made = {name: CASES[name][0]() for name in names}
    x = keras.Input((steps, 8))
    model = keras.Model(x, [layer(x) for layer in made.values()])
    shake(model)
    options = {}
    if steps is None:
        options = {"dynamic_shapes": {1: torch.export.Dim("length", min=2, max=64)}}
    model.export(str(tmp_path / "model.pt2"), format="torch", verbose=False, **options)
    (x,) = arrays(sequence, batch=1 if steps else 2, steps=steps or 7)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "model.pt2").module()(keras.ops.convert_to_tensor(x))
        wanted = {name: run(layer, x) for name, layer in made.items()}
    for (name, expected), y in zip(wanted.items(), found, strict=True):
        assert np.abs(y.cpu().numpy() - expected).max() < 1e-4, name


@on_torch
def test_pt2_of_dense_attention_with_grouped_heads(tmp_path):
    """On a GPU it is what is chosen for any length, and an implementation may be asked for."""
    import torch

    layer = layers.SelfAttention(2, num_key_value_heads=1, implementation="dense")
    x = keras.Input((None, 8))
    model = keras.Model(x, layer(x))
    shake(model)
    length = torch.export.Dim("length", min=2, max=64)
    options = {"dynamic_shapes": {1: length}}
    model.export(str(tmp_path / "model.pt2"), format="torch", verbose=False, **options)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for steps in (2, 7):
        (x,) = arrays(sequence, batch=2, steps=steps)
        with torch.no_grad():
            found = program(keras.ops.convert_to_tensor(x))
        assert_close(run(lambda y=found: y), run(layer, x))
