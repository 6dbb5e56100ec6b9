"""T5 and its versions 1.1 and Flan (Raffel et al., 2019) as the `transformers` library stores it.

T5 does not divide its scores by sqrt(D), so the matrices of its queries are multiplied by that
here. And where `scale_decoder_outputs` says so, or in older folders `tie_word_embeddings`, it
divides what the decoder gives by sqrt(width), so the scale of the last norm is divided by that. In
training, T5 also drops channels behind the last norm of each stack, which kattn's model does not.
"""

import keras

from kattn.layers import T5RelativeBias
from kattn.models import TransformerSeq2Seq
from kattn.presets.facts import hidden_width
from kattn.presets.family import Family, word_for
from kattn.presets.layouts import TRANSPOSED
from kattn.presets.links import Link, Part, dense, equal, norm

ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "geglu_tanh",  # which means gelu_new here, and only here
    "gated-silu": "swiglu",
    "gated-relu": "reglu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}


def _arguments(config, tensors, given):
    layers, dtype = config["num_layers"], given.get("dtype")
    config.check(is_encoder_decoder=True)
    if config.get("num_decoder_layers") is not None:
        config.check(num_decoder_layers=layers)
    rate = config.get("dropout_rate", 0.1)
    buckets = {
        "num_buckets": config.get("relative_attention_num_buckets", 32),
        "max_distance": config.get("relative_attention_max_distance", 128),
        "dtype": dtype,
    }
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": layers,
        "num_heads": config["num_heads"],
        "width": config["d_model"],
        "key_dim": config["d_kv"],
        "hidden_dim": config["d_ff"],
        "activation": config.choice("feed_forward_proj", ACTIVATIONS, "relu"),
        "norm": keras.layers.RMSNormalization(epsilon=epsilon, dtype=dtype),
        "use_bias": False,
        "position": T5RelativeBias(**buckets),
        "decoder_position": T5RelativeBias(**buckets, bidirectional=False),
        "tie_embeddings": T5.ties(config, tensors),
        "padding_token": config.get("pad_token_id", 0),
        "dropout": rate,
        "attention_dropout": rate,
        "hidden_dropout": rate,
    }


def _settings(model_type, facts, options):
    return {
        "vocab_size": facts["vocabulary_size"],
        "num_layers": facts["num_layers"],
        "num_decoder_layers": facts["num_layers"],
        "num_heads": facts["num_heads"],
        "d_model": facts["width"],
        "d_kv": facts["key_dim"],
        "d_ff": facts["hidden_dim"],
        "feed_forward_proj": word_for(facts["activation"], ACTIVATIONS),
        "layer_norm_epsilon": facts["norm"].get("epsilon"),
        "relative_attention_num_buckets": facts["position"]["num_buckets"],
        "relative_attention_max_distance": facts["position"]["max_distance"],
        "tie_word_embeddings": facts["tie_embeddings"],
        "scale_decoder_outputs": facts["tie_embeddings"],
        "is_encoder_decoder": True,
        "pad_token_id": facts["padding_token"],
        "decoder_start_token_id": facts["padding_token"],
        "dropout_rate": options.dropout,
    }


def _links(model, config):
    layers = model.options.num_layers
    divides = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    scales = {"encoder": 1.0, "decoder": model.options.width**-0.5 if divides else 1.0}
    yield equal("source/tokens/embeddings", T5.table, resized_by="vocabulary_size")
    for stack, blocks in (("encoder", model.blocks[:layers]), ("decoder", model.blocks[layers:])):
        for i, block in enumerate(blocks):
            yield from _block(f"{stack}/block{i}", f"{stack}.block.{i}.layer", block)
        role = "position" if stack == "encoder" else "decoder_position"
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Link(f"{stack}/block0/attention/{role}/table", (Part(first, layout=TRANSPOSED),))
        yield equal(f"{stack}/norm/scale", f"{stack}.final_layer_norm.weight", scales[stack])
    yield from dense("head", ["lm_head"], resized_by="vocabulary_size")


def _block(ours, theirs, block):
    """The links of a block, whose parts are numbered there."""
    sizes = block.attention.head_sizes
    widths = sizes.query_width, sizes.key_width, sizes.value_width
    root = sizes.key_dim**0.5
    attention = f"{theirs}.0.SelfAttention"
    parts = ["attention", "feed_forward"]
    yield from dense(
        f"{ours}/attention/qkv",
        [f"{attention}.{x}" for x in "qkv"],
        widths=widths,
        scales=(root, 1.0, 1.0),
    )
    yield from dense(f"{ours}/attention/output", [f"{attention}.o"])
    if ours.startswith("decoder"):
        cross = f"{theirs}.1.EncDecAttention"
        parts.insert(1, "cross_attention")
        yield from dense(f"{ours}/cross_attention/query", [f"{cross}.q"], scales=(root,))
        yield from dense(
            f"{ours}/cross_attention/key_value",
            [f"{cross}.k", f"{cross}.v"],
            widths=widths[1:],
        )
        yield from dense(f"{ours}/cross_attention/output", [f"{cross}.o"])
    for number, part in enumerate(parts):
        yield from norm(f"{ours}/{part}_residual/norm", f"{theirs}.{number}.layer_norm")
    yield from _feed_forward(
        f"{ours}/feed_forward", f"{theirs}.{len(parts) - 1}.DenseReluDense", block.feed_forward
    )


def _feed_forward(ours, theirs, feed_forward):
    names = ["wi_0", "wi_1"] if feed_forward.is_gated else ["wi"]  # wi_0 is the gate
    widths = (hidden_width(feed_forward),) * len(names)
    yield from dense(f"{ours}/hidden", [f"{theirs}.{name}" for name in names], widths=widths)
    yield from dense(f"{ours}/output", [f"{theirs}.wo"])


T5 = Family(
    model=TransformerSeq2Seq,
    position=T5RelativeBias,
    architectures={"t5": "T5ForConditionalGeneration"},
    arguments=_arguments,
    settings=_settings,
    links=_links,
    input_shape=lambda model: ((None, None), (None, None)),
    table="shared.weight",
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    head="lm_head.weight",
    buffers=r"EncDecAttention\.relative_attention_bias\.weight$",  # of old folders, never used
)
