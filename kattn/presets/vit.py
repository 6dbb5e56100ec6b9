"""Vision Transformers (Dosovitskiy et al., 2020) as the `transformers` library stores them."""

import keras

from kattn.layers import LearnedPositions
from kattn.models import VisionTransformer
from kattn.presets.classifiers import class_count, encoder_links, label_settings
from kattn.presets.family import Family, word_for
from kattn.presets.gpt2 import ACTIVATIONS
from kattn.presets.layouts import ONE_ITEM, Patches
from kattn.presets.links import dense, equal, norm


def _arguments(config, tensors, given):
    epsilon = config.get("layer_norm_eps", 1e-12)
    return {
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 16),
        "channels": config.get("num_channels", 3),
        "num_classes": class_count(tensors, given),
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
        **label_settings(facts["num_classes"]),
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
    norms = "layernorm_before", "layernorm_after"
    yield from encoder_links(model, attention="attention.attention", norms=norms)
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
