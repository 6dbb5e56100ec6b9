"""Vision Transformers (Dosovitskiy et al., 2020) as the `transformers` library stores them."""

import keras

from kattn.arguments import error
from kattn.layers import LearnedPositions
from kattn.models import VisionTransformer
from kattn.presets.family import Family, word_for
from kattn.presets.gpt2 import ACTIVATIONS
from kattn.presets.layouts import ONE_ITEM, Patches
from kattn.presets.links import dense, equal, norm

HEAD = "classifier.weight"


def _arguments(config, tensors, given):
    if HEAD not in tensors and "num_classes" not in given:
        raise error(
            "The folder holds no classifier, so say how many classes a new one shall have: "
            "from_huggingface(folder, num_classes=2)",
            num_classes=None,
        )
    epsilon = config.get("layer_norm_eps", 1e-12)
    return {
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 16),
        "channels": config.get("num_channels", 3),
        "num_classes": tensors[HEAD].shape[0] if HEAD in tensors else None,
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "width": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "activation": config.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm": keras.layers.LayerNormalization(epsilon=epsilon, dtype=given.get("dtype")),
        "use_qkv_bias": config.get("qkv_bias", True),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }


def _settings(model_type, facts, options):
    labels = [f"LABEL_{i}" for i in range(facts["num_classes"])]
    return {
        **{name: _one_if_equal(facts[name]) for name in ("image_size", "patch_size")},
        "num_channels": facts["channels"],
        "num_hidden_layers": facts["num_layers"],
        "num_attention_heads": facts["num_heads"],
        "hidden_size": facts["width"],
        "intermediate_size": facts["hidden_dim"],
        "hidden_act": word_for(facts["activation"], ACTIVATIONS),
        "layer_norm_eps": facts["norm"].get("epsilon"),
        "qkv_bias": facts["use_qkv_bias"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "hidden_dropout_prob": options.dropout,
        "attention_probs_dropout_prob": options.attention_dropout,
    }


def _links(model, config):
    patches = "embeddings.patch_embeddings.projection"
    layout = Patches(*model.patch_size)
    yield equal("embedding/projection/kernel", f"{patches}.weight", layout=layout)
    yield equal("embedding/projection/bias", f"{patches}.bias")
    yield equal("embedding/class_token", "embeddings.cls_token")
    yield equal("embedding/position/table", "embeddings.position_embeddings", layout=ONE_ITEM)
    for i, block in enumerate(model.blocks):
        ours, theirs = f"encoder/block{i}", f"encoder.layer.{i}"
        sizes = block.attention.head_sizes
        yield from dense(
            f"{ours}/attention/qkv",
            [f"{theirs}.attention.attention.{x}" for x in ("query", "key", "value")],
            widths=(sizes.query_width, sizes.key_width, sizes.value_width),
        )
        for layer, name in (
            ("attention/output", "attention.output.dense"),
            ("feed_forward/hidden", "intermediate.dense"),
            ("feed_forward/output", "output.dense"),
        ):
            yield from dense(f"{ours}/{layer}", [f"{theirs}.{name}"])
        yield from norm(f"{ours}/attention_residual/norm", f"{theirs}.layernorm_before")
        yield from norm(f"{ours}/feed_forward_residual/norm", f"{theirs}.layernorm_after")
    yield from norm("encoder/norm", "layernorm")
    yield from dense("head", ["classifier"], optional=True)


def _leaves_out(name, given):
    """Whether a tensor is of another task, or of a head that a new one replaces."""
    return name.startswith(("pooler.", "decoder.")) or (
        name.startswith("classifier.") and "num_classes" in given
    )


def _one_if_equal(sides):
    return sides[0] if len(set(sides)) == 1 else sides


def _input_shape(model):
    if model.data_format == "channels_first":
        return None, model.channels, *model.image_size
    return None, *model.image_size, model.channels


VIT = Family(
    model=VisionTransformer,
    position=LearnedPositions,
    architectures={"vit": "ViTForImageClassification"},
    arguments=_arguments,
    settings=_settings,
    links=_links,
    input_shape=_input_shape,
    prefix="vit.",
    unprefixed=("classifier.",),
    buffers=r"^embeddings\.mask_token$",
    leaves_out=_leaves_out,
)
