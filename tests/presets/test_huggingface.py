"""Against folders that `transformers` wrote, on each backend, and against itself where it is."""

import functools
import gc
import importlib.util
import json
import shutil
import weakref

import keras
import numpy as np
import pytest
import safetensors.numpy

from kattn import generate, layers, models
from kattn.presets import from_huggingface, links, safetensors_file, to_huggingface
from kattn.presets.facts import facts
from kattn.presets.folder import stored_tensors
from kattn.presets.links import Link
from kattn.presets.safetensors_file import read_header
from kattn.presets.weights import weights_by_path
from tests.compute import assert_close, quick, result, run
from tests.presets import architectures
from tests.presets.architectures import ARCHITECTURES, FIXTURES, TOKENS

BACKEND = keras.backend.backend()
CLASSIFYING = ("bert", "vit")
GENERATING = [name for name in ARCHITECTURES if name not in CLASSIFYING]
TRANSFORMERS = pytest.mark.skipif(
    BACKEND != "torch" or importlib.util.find_spec("transformers") is None,
    reason="transformers needs PyTorch",
)


class Watched(np.ndarray):
    """An array in a `WeakSet`, which compares with nothing."""

    def __new__(cls, array):
        return np.asarray(array).view(cls)

    def __hash__(self):
        return id(self)


def expected(name):
    """Tokens, and the logits that `transformers` gave for them."""
    stored = np.load(FIXTURES / name / "expected.npz")
    return stored["tokens"], stored["logits"]


def logits(model, name):
    """The logits of our model, as those in the folder."""
    inputs, options = architectures.inputs_of_ours(name, expected(name)[0])
    call = quick(lambda *tensors: model(*tensors, **options))
    return run(call, *keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))


def values(model):
    """The weights as NumPy, by path."""
    return {path: run(keras.ops.copy, weight) for path, weight in weights_by_path(model).items()}


@functools.cache
def values_of(name):
    """Those of a folder as it is."""
    return values(from_huggingface(FIXTURES / name))


@pytest.fixture
def folder(tmp_path):
    """A function that copies a fixture, to be changed."""

    def copy(name):
        return shutil.copytree(FIXTURES / name, tmp_path / name)

    return copy


def change_config(path, **settings):
    config = json.loads((path / "config.json").read_text())
    config = {**config, **settings}
    (path / "config.json").write_text(json.dumps(config))


def change_tensors(path, change):
    """Writes the tensors anew after a function changed the dict of their arrays."""
    tensors = {name: x.read() for name, x in stored_tensors(path).items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_theirs(name, capsys):
    """For prompts and for what they write behind them, of which each token has the most."""
    found, (tokens, wanted) = logits(from_huggingface(FIXTURES / name), name), expected(name)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    if name in GENERATING:
        new = architectures.NEW
        np.testing.assert_array_equal(found[:, -new - 1 : -1].argmax(-1), tokens[:, -new:])
    assert not capsys.readouterr().out  # all was matched


# It is compiled on JAX and TensorFlow, which takes seconds, and the first test holds for all.
@pytest.mark.parametrize("name", GENERATING if BACKEND == "torch" else ["t5"])
def test_greedy_tokens_are_theirs(name):
    """Step by step with our cache, token for token."""
    model, (tokens, _), new = from_huggingface(FIXTURES / name), expected(name), architectures.NEW
    context = {}
    if name.startswith("t5"):
        context = {"context": TOKENS, "context_mask": architectures.KEEP}
    found = generate(model, tokens[:, :-new], new, **context)
    np.testing.assert_array_equal(found, tokens[:, -new:])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_way_back_gives_the_same_folder(name, tmp_path):
    """The same tensors, and settings that mean the same."""
    model = from_huggingface(FIXTURES / name)
    to_huggingface(model, tmp_path, eos_token_id=7, shard_bytes=2000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    wanted, found = stored_tensors(FIXTURES / name), stored_tensors(tmp_path)
    assert set(found) == set(wanted)
    for key, tensor in wanted.items():
        assert_close(found[key].read(), tensor.read().astype("float32"))
    config = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((FIXTURES / name / "config.json").read_text())
    assert config["eos_token_id"] == 7
    assert config["architectures"] == original["architectures"]
    assert config["model_type"] == original["model_type"]
    again = from_huggingface(tmp_path)
    assert facts(again) == facts(model)
    for rate in ("dropout", "attention_dropout", "hidden_dropout"):
        assert getattr(again.options, rate) == getattr(model.options, rate)


@TRANSFORMERS
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_reads_what_is_written(name, tmp_path):
    import transformers

    to_huggingface(from_huggingface(FIXTURES / name), tmp_path)
    _, model, _ = ARCHITECTURES[name]
    again, report = getattr(transformers, model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for found, wanted in zip(
        architectures.expected(name, again.eval()), expected(name), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_old_folders(folder):
    """Names without a prefix, of norms as they once were, tensors of no weight, repetitions."""
    for name in ("gpt2", "bert", "t5", "llama-biases-tied"):
        path = folder(name)

        def change(tensors, name=name):
            for old in list(tensors):
                new = old.removeprefix("transformer.").removeprefix("bert.")
                new = new.replace("LayerNorm.weight", "LayerNorm.gamma")
                tensors[new.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(old)
            if name == "gpt2":
                tensors["h.0.attn.bias"] = np.ones((1, 1, 16, 16), "uint8")
                tensors["lm_head.weight"] = tensors["wte.weight"]
            elif name == "bert":
                tensors["embeddings.position_ids"] = np.arange(16)[None]
            elif name == "t5":
                tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
            else:
                tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, "float32")

        change_tensors(path, change)
        for key, weight in values(from_huggingface(path, print_fn=None)).items():
            assert_close(weight, values_of(name)[key], 0)


def test_a_head_of_other_numbers_is_not_tied(folder):
    path = folder("gpt2")
    head = np.arange(17 * 8, dtype="float32").reshape(17, 8)
    change_tensors(path, lambda tensors: tensors.update({"lm_head.weight": head}))
    model = from_huggingface(path)
    assert not model.tie_embeddings
    assert_close(values(model)["head/kernel"], head.T, 0)


def test_settings_of_older_versions(folder):
    """`rope_theta` and `rope_scaling` beside the others, with the type named `type`."""
    path = folder("llama")
    change_config(
        path, rope_parameters=None, rope_theta=70.0, rope_scaling={"type": "linear", "factor": 3.0}
    )
    position = from_huggingface(path).position
    assert (position.base, position.scaling, position.factor) == (70.0, "linear", 3.0)
    path = folder("qwen2")
    change_config(path, layer_types=None)
    assert from_huggingface(path).options.window == (None, 3)


def test_what_a_tied_t5_decodes_may_be_undivided(folder):
    """As in version 1.1 where `transformers` 5 has tied it."""
    path = folder("t5")
    divided = values_of("t5")["decoder/norm/scale"]
    change_config(path, scale_decoder_outputs=False)
    assert_close(values(from_huggingface(path))["decoder/norm/scale"], divided * 8**0.5)


def test_options_override_the_settings(folder):
    path = folder("gpt2")
    change_config(path, embd_pdrop=0.2)
    with pytest.raises(ValueError, match=r"embd_pdrop and resid_pdrop must be equal.*=0\.2"):
        from_huggingface(path)
    model = from_huggingface(path, dropout=0.0, dtype="bfloat16")
    assert model.options.dropout == 0
    dtypes = {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights}
    assert dtypes == {"bfloat16"}


def test_new_head(capsys):
    """In place of that of the folder; what came from where is said."""
    model = from_huggingface(FIXTURES / "bert", num_classes=5)
    assert model.num_classes == 5
    assert capsys.readouterr().out.splitlines() == [
        f"{FIXTURES / 'bert'}: 39 tensors were matched.",
        "Left out, as the model has no place for them: classifier.bias, classifier.weight",
        "Weights that stay random: head/bias, head/kernel",
    ]
    assert_close(values(model)["pooler/kernel"], values_of("bert")["pooler/kernel"], 0)


def test_images_of_either_data_format(folder):
    """With a new head in place of that of the folder, or where there is none."""
    path = folder("vit")
    images = expected("vit")[0]
    first = from_huggingface(path, data_format="channels_first")
    assert_close(run(first, images.transpose(0, 3, 1, 2)), expected("vit")[1], 1e-4)
    model = from_huggingface(path, num_classes=5, print_fn=None)
    assert values(model)["head/kernel"].shape == (8, 5)
    name = "embedding/projection/kernel"
    assert_close(values(model)[name], values_of("vit")[name], 0)
    change_tensors(
        path, lambda tensors: [tensors.pop(f"classifier.{x}") for x in ("weight", "bias")]
    )
    with pytest.raises(ValueError, match=r"holds no classifier.*num_classes=None"):
        from_huggingface(path)


def test_folder_of_another_task(folder, capsys):
    """Its heads are left out, and a new one must be asked for."""
    path = folder("bert")

    def change(tensors):
        for name in list(tensors):
            if name.startswith(("classifier", "bert.pooler")):
                del tensors[name]
        tensors["cls.predictions.bias"] = np.zeros(17, "float32")

    change_tensors(path, change)
    with pytest.raises(ValueError, match=r"holds no classifier.*num_classes=None"):
        from_huggingface(path)
    model = from_huggingface(path, num_classes=2, pooling="mean")
    assert "no place for them: cls.predictions.bias\n" in capsys.readouterr().out
    assert not model.use_pooler


def test_tables_of_other_sizes(capsys):
    """Rows that both have are kept; further ones are random."""
    folder, position = FIXTURES / "mistral", layers.LearnedPositions(20)
    model = from_huggingface(folder, vocabulary_size=21)
    wanted, found = values_of("mistral"), values(model)
    for name in ("embedding/tokens/embeddings", "head/kernel"):
        table = found[name].T if name.startswith("head") else found[name]
        old = wanted[name].T if name.startswith("head") else wanted[name]
        assert_close(table[:17], old, 0)
        assert 0 < np.abs(table[17:]).max() < 0.1 * np.abs(old).max()
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: 21 tensors were matched.",
        "Resized: embed_tokens.weight from (17, 8) to (21, 8), lm_head.weight from (17, 8) to "
        "(21, 8)",
    ]
    model = from_huggingface(FIXTURES / "gpt2", position=position, vocabulary_size=5, print_fn=None)
    wanted, found = values_of("gpt2"), values(model)
    assert_close(found["embedding/position/table"][:16], wanted["embedding/position/table"], 0)
    assert_close(found["embedding/tokens/embeddings"], wanted["embedding/tokens/embeddings"][:5], 0)


def without(name):
    return lambda tensors: tensors.pop(name)


def replaced(name, array):
    return lambda tensors: tensors.update({name: array})


QUERY = "model.layers.1.self_attn.q_proj.weight"
BAD_TENSORS = {
    "missing": (without(QUERY), rf"received: missing='{QUERY[6:]}'"),
    "superfluous": (replaced("model.x", np.ones(3, "float32")), r"superfluous='x'"),
    "misshapen": (
        replaced(QUERY, np.ones((8, 9), "float32")),
        rf"misshapen='{QUERY[6:]} from \(8, 9\) to \(8, 8\)'",
    ),
    "unasked": (  # for another vocabulary_size
        replaced("model.embed_tokens.weight", np.ones((18, 8), "float32")),
        r"misshapen='embed_tokens.weight from \(18, 8\) to \(17, 8\)'",
    ),
    "integers": (replaced(QUERY, np.ones((8, 8), "int8")), rf"not_of_floats='{QUERY[6:]}'"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_nothing_is_loaded_by_half(name, folder, monkeypatch):
    change, message = BAD_TENSORS[name]
    path = folder("llama")
    change_tensors(path, change)
    gathered = []
    monkeypatch.setattr(Link, "gather", lambda *_: gathered.append(1))
    with pytest.raises(ValueError, match=message):
        from_huggingface(path)
    assert not gathered


BAD_SETTINGS = {
    "architecture": ("gpt2", {"model_type": "bloom"}, r"`model_type` must be one of gpt2, llama"),
    "quantised": ("gpt2", {"quantization_config": {"bits": 4}}, r"`quantization_config` must not"),
    "missing": ("gpt2", {"n_head": "absent"}, r"`n_head` must be among the settings"),
    "scores": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"`scale_attn_by_inverse.*True"),
    "activation": ("gpt2", {"activation_function": "mish"}, r"`activation_function` must.*'mish'"),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn"}}, r"`rope_type` must be.*'yarn'"),
    "llama3": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
        r"`original_max_position_embeddings` must be among the settings",
    ),
    "by layer": (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        r"All layers must have the same rotary positions",
    ),
    "word": ("llama", {"rope_parameters": "yarn"}, r"type that `transformers` gives.*config\.json"),
    "list": ("llama", {"rope_parameters": {"rope_theta": [1e4]}}, r"type that `transformers`"),
    "no number": ("qwen2", {"num_hidden_layers": "2"}, r"`num_layers` must be.*num_layers='2'"),
    "fraction": ("llama", {"partial_rotary_factor": 0.5}, r"`partial_rotary_factor` must be 1\.0"),
    "biases": ("mistral", {"attention_bias": True}, r"`attention_bias` must be False.*=True"),
    "layers": ("qwen2", {"layer_types": ["chunked", "x"]}, r"`layer_types` must be of"),
    "positions": (
        "bert",
        {"position_embedding_type": "relative_key"},
        r"`position_embedding_type`",
    ),
    "depths": ("t5", {"num_decoder_layers": 3}, r"`num_decoder_layers` must be 2.*=3"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_ask_for_something_else(name, folder):
    fixture, settings, message = BAD_SETTINGS[name]
    path = folder(fixture)
    config = json.loads((path / "config.json").read_text())
    config = {key: x for key, x in {**config, **settings}.items() if x != "absent"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_huggingface(path)


def test_a_truncated_file(folder):
    path = folder("gpt2") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"truncated or damaged.*model\.safetensors"):
        from_huggingface(path.parent)


def gpt2(**options):
    """A model of ours that has what a GPT-2 has."""
    model = models.TransformerLM(
        11, 1, 2, 8, **{"position": layers.LearnedPositions(6), "dropout": 0.1, **options}
    )
    model.build((None, None))
    return model


def rotary(**options):
    """A model of ours that has what a Llama has."""
    given = {"norm": "rms", "activation": "swiglu", "use_bias": False}
    position = layers.RotaryEmbedding()
    return gpt2(**{"position": position, **given, **options})


KINDS = {
    "gpt2": (gpt2, {}),
    "llama": (rotary, {}),
    "mistral": (rotary, {"window": 3}),
    "qwen2": (rotary, {"use_qkv_bias": True}),
    "qwen3": (rotary, {"use_qk_norm": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_ours(kind, tmp_path):
    """The arguments say which architecture it is, and defaults are written in full."""
    make, options = KINDS[kind]
    model = make(**options)
    to_huggingface(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    again = from_huggingface(tmp_path)
    assert facts(again) == facts(model)
    wanted, found = values(model), values(again)
    assert wanted.keys() == found.keys()
    for name, weight in wanted.items():
        assert_close(found[name], weight, 0)


BAD_MODELS = {
    "placement": (gpt2, {"placement": "sandwich"}, r"differs from all.*placement='sandwich'"),
    "norm": (gpt2, {"norm": "rms"}, r"norm=\{'class': 'RMSNormalization'"),
    "activation": (rotary, {"activation": "relu"}, r"`activation` must be one of swiglu"),
    "two": (rotary, {"use_qkv_bias": True, "use_qk_norm": True}, r"use_q.*=True"),
    "rotary": (
        rotary,
        {"position": layers.RotaryEmbedding(interleaved=True)},
        r"position=.*'interleaved': True",
    ),
    "position": (gpt2, {"position": layers.ALiBi()}, r"differs from all.*model='TransformerLM'"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_no_architecture_has(name, tmp_path):
    make, options, message = BAD_MODELS[name]
    with pytest.raises(ValueError, match=message):
        to_huggingface(make(**options), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_bad_calls(tmp_path):
    model = models.TransformerLM(11, 1, 2, 8)
    with pytest.raises(ValueError, match=r"must be built before it is written"):
        to_huggingface(model, tmp_path)
    with pytest.raises(ValueError, match=r"must not be those that the model implies.*n_head"):
        to_huggingface(gpt2(), tmp_path, n_head=3)
    with pytest.raises(ValueError, match=r"`shard_bytes` must be an integer >= 1"):
        to_huggingface(gpt2(), tmp_path, shard_bytes=0)


def test_weights_of_low_rank_are_added(tmp_path):
    model = gpt2()
    model.enable_lora(2)
    for weight in model.trainable_weights:
        weight.assign(keras.random.normal(weight.shape, seed=len(weight.path)))
    to_huggingface(model, tmp_path)
    again = from_huggingface(tmp_path)
    tokens = TOKENS[:, :5]
    assert_close(result(again, tokens), result(model, tokens))


@pytest.mark.filterwarnings("ignore:.*quantize.*")
def test_quantised_weights_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # by Keras, half a second for each weight
    model = gpt2()
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"must be floats; write a model before.*dtype='int8'"):
        to_huggingface(model, tmp_path)


def watch(monkeypatch, module, name):
    """How many arrays of a function are in memory at each of its calls, a list that grows."""
    make, alive, counts = getattr(module, name), weakref.WeakSet(), []

    def watched(*arguments):
        array = Watched(make(*arguments))
        alive.add(array)
        counts.append(len(alive))
        return array

    monkeypatch.setattr(module, name, watched)
    return counts


def test_memory_is_the_model_and_a_tensor(tmp_path, monkeypatch):
    """When a tensor is read or made, the one before it is gone."""
    read = watch(monkeypatch, safetensors_file, "_read")
    made = watch(monkeypatch, links, "_piece")
    to_huggingface(from_huggingface(FIXTURES / "llama"), tmp_path)
    assert made == [1] * 21
    assert len(read) == 21
    if BACKEND != "jax":  # whose variables may be these arrays, without a copy
        assert max(read) == 1


def test_one_file_in_place_of_several(tmp_path):
    """No file of an earlier model is read in its place."""
    to_huggingface(gpt2(), tmp_path, shard_bytes=500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    sizes = [sum(x.read().nbytes for x in read_header(tmp_path / file).values()) for file in files]
    assert index["metadata"]["total_size"] == sum(sizes)
    other = gpt2()
    to_huggingface(other, tmp_path)
    found = values(from_huggingface(tmp_path))["embedding/tokens/embeddings"]
    assert_close(found, values(other)["embedding/tokens/embeddings"], 0)
