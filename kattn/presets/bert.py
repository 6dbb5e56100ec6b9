"""BERT (Devlin et al., 2018) as the `transformers` library stores it."""

import keras

from kattn.arguments import error
from kattn.layers import LearnedPositions
from kattn.models import TransformerClassifier
from kattn.presets.classifiers import class_count, encoder_links, label_settings
from kattn.presets.family import Family, word_for
from kattn.presets.gpt2 import ACTIVATIONS
from kattn.presets.links import dense, equal, norm


def _arguments(config, tensors, given):
    config.check(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    dtype = given.get("dtype")
    rate = config.same(given, "dropout", "hidden_dropout_prob", default=0.1)
    if config.get("classifier_dropout") is not None:
        rate = config.same(
            given, "dropout", "hidden_dropout_prob", "classifier_dropout", default=0.1
        )
    epsilon = config.get("layer_norm_eps", 1e-12)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_classes": class_count(tensors, given),
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "width": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "activation": config.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm": keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype),
        "placement": "post",
        "position": LearnedPositions(config["max_position_embeddings"], dtype=dtype),
        "pooling": "first",
        "use_pooler": "pooler.dense.weight" in tensors,
        "num_token_types": config["type_vocab_size"],
        "use_embedding_norm": True,
        "padding_token": config.get("pad_token_id", 0),
        "dropout": rate,
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
    }


def _settings(model_type, facts, options):
    if not facts["use_pooler"]:
        raise error("A classifier must have a pooler to be written as a BERT", use_pooler=False)
    return {
        "vocab_size": facts["vocabulary_size"],
        "num_hidden_layers": facts["num_layers"],
        "num_attention_heads": facts["num_heads"],
        "hidden_size": facts["width"],
        "intermediate_size": facts["hidden_dim"],
        "hidden_act": word_for(facts["activation"], ACTIVATIONS),
        "layer_norm_eps": facts["norm"].get("epsilon"),
        "max_position_embeddings": facts["position"]["length"],
        "type_vocab_size": facts["num_token_types"],
        "pad_token_id": facts["padding_token"],
        **label_settings(facts["num_classes"]),
        "hidden_dropout_prob": options.dropout,
        "attention_probs_dropout_prob": options.attention_dropout,
    }


def _links(model, config):
    for ours, theirs, argument in (
        ("tokens/embeddings", "word_embeddings", "vocabulary_size"),
        ("types/embeddings", "token_type_embeddings", "num_token_types"),
        ("position/table", "position_embeddings", "position"),
    ):
        yield equal(f"embedding/{ours}", f"embeddings.{theirs}.weight", resized_by=argument)
    yield from norm("embedding/norm", "embeddings.LayerNorm")
    norms = "attention.output.LayerNorm", "output.LayerNorm"
    yield from encoder_links(model, attention="attention.self", norms=norms)
    yield from dense("pooler", ["pooler.dense"], optional=True)
    yield from dense("head", ["classifier"], optional=True)


def _leaves_out(name, given):
    """Whether a tensor is of another task, or of a head that a new one replaces."""
    return name.startswith("cls.") or (
        (name.startswith("classifier.") and "num_classes" in given)
        or (name.startswith("pooler.") and not given.get("use_pooler", True))
    )


BERT = Family(
    model=TransformerClassifier,
    position=LearnedPositions,
    architectures={"bert": "BertForSequenceClassification"},
    arguments=_arguments,
    settings=_settings,
    links=_links,
    prefix="bert.",
    unprefixed=("classifier.",),
    renamed=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    buffers=r"^embeddings\.position_ids$",
    leaves_out=_leaves_out,
)
