"""GPT-2 (Radford et al., 2019) as the `transformers` library stores it."""

import keras

from kattn.layers import LearnedPositions
from kattn.models import TransformerLM
from kattn.presets.family import Family, word_for
from kattn.presets.links import dense, equal, norm

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def _arguments(config, tensors, given):
    config.check(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    dtype = given.get("dtype")
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "width": config["n_embd"],
        "hidden_dim": config.get("n_inner"),
        "activation": config.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "norm": keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype),
        "position": LearnedPositions(config["n_positions"], dtype=dtype),
        "tie_embeddings": GPT2.ties(config, tensors),
        "dropout": config.same(given, "dropout", "embd_pdrop", "resid_pdrop", default=0.1),
        "attention_dropout": config.get("attn_pdrop", 0.1),
    }


def _settings(model_type, facts, options):
    return {
        "vocab_size": facts["vocabulary_size"],
        "n_layer": facts["num_layers"],
        "n_head": facts["num_heads"],
        "n_embd": facts["width"],
        "n_inner": facts["hidden_dim"],
        "n_positions": facts["position"]["length"],
        "activation_function": word_for(facts["activation"], ACTIVATIONS),
        "layer_norm_epsilon": facts["norm"].get("epsilon"),
        "tie_word_embeddings": facts["tie_embeddings"],
        "embd_pdrop": options.dropout,
        "resid_pdrop": options.dropout,
        "attn_pdrop": options.attention_dropout,
    }


def _links(model, config):
    yield equal("embedding/tokens/embeddings", GPT2.table, resized_by="vocabulary_size")
    yield equal("embedding/position/table", "wpe.weight", resized_by="position")
    for i in range(model.options.num_layers):
        ours, theirs = f"decoder/block{i}", f"h.{i}"
        yield from norm(f"{ours}/attention_residual/norm", f"{theirs}.ln_1")
        yield from norm(f"{ours}/feed_forward_residual/norm", f"{theirs}.ln_2")
        for layer, name in (  # their matrices are (in, out), and q, k, v are one, as ours
            ("attention/qkv", "attn.c_attn"),
            ("attention/output", "attn.c_proj"),
            ("feed_forward/hidden", "mlp.c_fc"),
            ("feed_forward/output", "mlp.c_proj"),
        ):
            yield from dense(f"{ours}/{layer}", [f"{theirs}.{name}"], transposed=False)
    yield from norm("decoder/norm", "ln_f")
    yield from dense("head", ["lm_head"], resized_by="vocabulary_size")


GPT2 = Family(
    model=TransformerLM,
    position=LearnedPositions,
    architectures={"gpt2": "GPT2LMHeadModel"},
    arguments=_arguments,
    settings=_settings,
    links=_links,
    prefix="transformer.",
    unprefixed=("lm_head.",),
    table="wte.weight",
    head="lm_head.weight",
    buffers=r"^h\.\d+\.attn\.(bias|masked_bias)$",
)
