"""Models from the backbones of KerasHub (`keras_hub`, also named `keras_nlp`)."""

import math

import keras
from keras import ops

from kattn.arguments import check_choice
from kattn.layers import LearnedPositions
from kattn.models import TransformerClassifier, TransformerLM
from kattn.presets.links import dense, equal, norm
from kattn.presets.safetensors_file import StoredTensor
from kattn.presets.weights import dtype_of, load_weights

# What a layer of a backbone has, and what the links name it.
ENDINGS = {"kernel": ".weight", "gamma": ".weight", "bias": ".bias", "beta": ".bias"}


def from_keras_hub(backbone, *, print_fn=print, **options):
    """A model with the weights of a backbone of KerasHub.

    Args:
        backbone: A `GPT2Backbone`, which becomes a `TransformerLM`, or a `BertBackbone`, which
            becomes a `TransformerClassifier` whose head has random weights.
        print_fn: Function that is called with lines of text that say which weights were matched,
            resized, and stay random, if not all were matched. None to say nothing.
        **options: Arguments of the model that override those of the backbone, such as
            `dropout=0.0`. For a `BertBackbone`, `num_classes` must be among them.

    Returns:
        A model that is built. As in the backbone, no token stands for padding unless you name one,
        `padding_token=0`: masks say what is padding.

    Raises:
        ValueError: If the backbone is of another class, or if its weights are not those that the
            arguments ask for.

    Example:
        >>> kattn.presets.from_keras_hub(keras.layers.Dense(3))
        Traceback (most recent call last):
        ValueError: `backbone` must be one of GPT2Backbone, BertBackbone; received: backbone='Dense'
        >>> import keras_hub  # doctest: +SKIP
        >>> backbone = keras_hub.models.GPT2Backbone(  # doctest: +SKIP
        ...     50, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16
        ... )
        >>> model = kattn.presets.from_keras_hub(backbone)  # doctest: +SKIP
    """
    kind = type(backbone).__name__
    check_choice(tuple(KINDS), backbone=kind)
    make, links_of = KINDS[kind]
    model = make(backbone.get_config(), options)
    model.build((None, None))
    tensors = {_name(weight.path): _borrowed(weight) for weight in backbone.weights}
    load_weights(
        model, links_of(model), tensors, given=options, source=backbone.name, print_fn=print_fn
    )
    return model


def _borrowed(weight):
    """A weight of a backbone as a matrix or a vector: there, heads have an axis of their own."""
    shape, (layer, kind) = tuple(weight.shape), weight.path.split("/")[-2:]
    if kind == "bias":
        shape = (math.prod(shape),)
    elif len(shape) == 3 and layer == "attention_output":  # (N, D, C)
        shape = math.prod(shape[:2]), shape[2]
    elif len(shape) == 3:  # (C, N, D)
        shape = shape[0], math.prod(shape[1:])
    return StoredTensor(
        dtype_of(weight), shape, lambda: ops.convert_to_numpy(weight).reshape(shape)
    )


def _name(path):
    layer, _, kind = path.rpartition("/")
    return f"{layer}{ENDINGS[kind]}" if kind in ENDINGS else path


def _arguments(config, options, epsilon):
    """What the models have in common."""
    dtype = options.get("dtype")
    return {
        "vocabulary_size": config["vocabulary_size"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "width": config["hidden_dim"],
        "hidden_dim": config["intermediate_dim"],
        "activation": "gelu_tanh",
        "norm": keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype),
        "position": LearnedPositions(config["max_sequence_length"], dtype=dtype),
        "dropout": config["dropout"],
        "attention_dropout": config["dropout"],
    }


def _gpt2(config, options):
    return TransformerLM(**{**_arguments(config, options, 1e-5), **options})


def _bert(config, options):
    arguments = {
        **_arguments(config, options, 1e-12),
        "placement": "post",
        "pooling": "first",
        "use_pooler": True,
        "num_token_types": config["num_segments"],
        "use_embedding_norm": True,
        "num_classes": None,
    }
    return TransformerClassifier(**{**arguments, **options})


def _gpt2_links(model):
    yield from _embedding_links()
    for i, block in enumerate(model.blocks):
        theirs = f"transformer_layer_{i}"
        yield from _block_links(f"decoder/block{i}", theirs, f"{theirs}/self_attention", block)
    yield from norm("decoder/norm", "layer_norm")


def _bert_links(model):
    yield from _embedding_links()
    yield from norm("embedding/norm", "embeddings_layer_norm")
    for i, block in enumerate(model.blocks):
        theirs = f"transformer_layer_{i}"
        yield from _block_links(
            f"encoder/block{i}", theirs, f"{theirs}/self_attention_layer", block
        )
    yield from dense("pooler", ["pooled_dense"], transposed=False)


def _embedding_links():
    for ours, theirs, argument in (
        ("tokens/embeddings", "token_embedding", "vocabulary_size"),
        ("types/embeddings", "segment_embedding", "num_token_types"),
        ("position/table", "position_embedding", "position"),
    ):
        yield equal(f"embedding/{ours}", f"{theirs}/embeddings", resized_by=argument)


def _block_links(ours, theirs, attention, block):
    sizes = block.attention.head_sizes
    yield from dense(
        f"{ours}/attention/qkv",
        [f"{attention}/{x}" for x in ("query", "key", "value")],
        widths=(sizes.query_width, sizes.key_width, sizes.value_width),
        transposed=False,
    )
    for layer, name in (
        ("attention/output", f"{attention}/attention_output"),
        ("feed_forward/hidden", f"{theirs}/feedforward_intermediate_dense"),
        ("feed_forward/output", f"{theirs}/feedforward_output_dense"),
    ):
        yield from dense(f"{ours}/{layer}", [name], transposed=False)
    yield from norm(f"{ours}/attention_residual/norm", f"{theirs}/self_attention_layer_norm")
    yield from norm(f"{ours}/feed_forward_residual/norm", f"{theirs}/feedforward_layer_norm")


KINDS = {"GPT2Backbone": (_gpt2, _gpt2_links), "BertBackbone": (_bert, _bert_links)}
