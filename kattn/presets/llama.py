"""Llama, Mistral, Qwen2 and Qwen3 as the `transformers` library stores them."""

import keras

from kattn.arguments import error
from kattn.layers import RotaryEmbedding
from kattn.models import TransformerLM
from kattn.presets.facts import hidden_width
from kattn.presets.family import Family, word_for
from kattn.presets.folder import Config
from kattn.presets.links import dense, equal, norm

ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "gelu": "geglu",
    "relu": "reglu",
}
# What the settings of Llama 3's scaling are as arguments of `RotaryEmbedding`.
LLAMA3 = {
    "original_max_position_embeddings": "original_length",
    "high_freq_factor": "beta_fast",
    "low_freq_factor": "beta_slow",
}


def _arguments(config, tensors, given):
    kind, dtype = config["model_type"], given.get("dtype")
    epsilon = config.get("rms_norm_eps", 1e-6)
    if kind != "llama":
        config.check(attention_bias=False, mlp_bias=False)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "width": config["hidden_size"],
        "num_key_value_heads": config.get("num_key_value_heads"),
        "key_dim": config.get("head_dim", 128 if kind == "qwen3" else None),
        "hidden_dim": config["intermediate_size"],
        "activation": config.choice("hidden_act", ACTIVATIONS, "silu"),
        "norm": keras.layers.RMSNormalization(epsilon=epsilon, dtype=dtype),
        "position": _rotary(config, dtype),
        "window": _windows(config),
        "use_bias": config.get("attention_bias", False),
        "use_qkv_bias": True if kind == "qwen2" else None,
        "use_feed_forward_bias": config.get("mlp_bias", False),
        "use_qk_norm": kind == "qwen3",
        "qk_norm_epsilon": epsilon,
        "tie_embeddings": LLAMA.ties(config, tensors),
        "attention_dropout": config.get("attention_dropout", 0.0),
    }


def _rotary(config, dtype):
    """The rotary positions, of settings before and since version 5 of `transformers`."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if any(isinstance(value, dict) for value in given.values()):
        raise error("All layers must have the same rotary positions", rope_parameters=given)
    rope = Config(given, f"rope_parameters or rope_scaling of {config.source}")
    name = "rope_type" if "rope_type" in given else "type"
    known = {"default": None, "linear": "linear", "llama3": "llama3"}
    scaling = rope.choice(name, known, "default")
    rope.check(partial_rotary_factor=1.0)
    config.check(partial_rotary_factor=1.0)
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    options = {} if scaling is None else {"factor": float(rope["factor"])}
    if scaling == "llama3":
        options |= {ours: float(rope[theirs]) for theirs, ours in LLAMA3.items()}
    return RotaryEmbedding(float(base), scaling=scaling, **options, dtype=dtype)


def _windows(config):
    """The argument `window`: an integer, None, or a tuple with an entry for each layer."""
    if config["model_type"] == "mistral":
        return config.get("sliding_window", 4096)
    if config["model_type"] == "llama" or not config.get("use_sliding_window", False):
        return None
    layers, window = config["num_hidden_layers"], config["sliding_window"]
    first = config.get("max_window_layers", layers)
    kinds = config.get("layer_types") or [
        "full_attention" if i < first else "sliding_attention" for i in range(layers)
    ]
    if set(kinds) - {"full_attention", "sliding_attention"}:
        raise error(
            "`layer_types` must be of 'full_attention' and 'sliding_attention'", layer_types=kinds
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _settings(model_type, facts, options):
    return {
        "vocab_size": facts["vocabulary_size"],
        "num_hidden_layers": facts["num_layers"],
        "num_attention_heads": facts["num_heads"],
        "hidden_size": facts["width"],
        "num_key_value_heads": facts["num_key_value_heads"],
        "head_dim": facts["key_dim"],
        "intermediate_size": facts["hidden_dim"],
        "hidden_act": word_for(facts["activation"], ACTIVATIONS),
        "rms_norm_eps": facts["norm"].get("epsilon"),
        "rope_theta": facts["position"]["base"],
        "rope_scaling": _scaling(facts["position"]),
        "tie_word_embeddings": facts["tie_embeddings"],
        "attention_dropout": options.attention_dropout,
        **_settings_of_kind(model_type, facts),
    }


def _scaling(position):
    """The setting `rope_scaling`."""
    if position["scaling"] is None:
        return None
    settings = {"rope_type": position["scaling"], "factor": position["factor"]}
    if position["scaling"] == "llama3":
        settings |= {theirs: position[ours] for theirs, ours in LLAMA3.items()}
    return settings


def _settings_of_kind(model_type, facts):
    """The settings that only some of these models have."""
    windows = facts["window"]
    used = sorted({window for window in windows if window is not None})
    if model_type == "llama":
        return {"attention_bias": facts["use_bias"], "mlp_bias": facts["use_feed_forward_bias"]}
    if model_type == "mistral":
        return {"sliding_window": windows[0]}
    if not used:
        return {"use_sliding_window": False}
    kinds = ["full_attention" if x is None else "sliding_attention" for x in windows]
    return {
        "use_sliding_window": True,
        "sliding_window": used[0],
        "layer_types": kinds,
        "max_window_layers": kinds.index("sliding_attention"),
    }


def _links(model, config):
    yield equal("embedding/tokens/embeddings", LLAMA.table, resized_by="vocabulary_size")
    for i, block in enumerate(model.blocks):
        ours, theirs = f"decoder/block{i}", f"layers.{i}"
        sizes = block.attention.head_sizes
        attention, feed_forward = f"{theirs}.self_attn", f"{theirs}.mlp"
        yield from norm(f"{ours}/attention_residual/norm", f"{theirs}.input_layernorm")
        yield from norm(f"{ours}/feed_forward_residual/norm", f"{theirs}.post_attention_layernorm")
        yield from dense(
            f"{ours}/attention/qkv",
            [f"{attention}.{x}_proj" for x in "qkv"],
            widths=(sizes.query_width, sizes.key_width, sizes.value_width),
        )
        for x, name in (("query", "q"), ("key", "k")):
            yield from norm(f"{ours}/attention/{x}_norm", f"{attention}.{name}_norm")
        yield from dense(f"{ours}/attention/output", [f"{attention}.o_proj"])
        yield from dense(  # the gate first, as in FeedForward
            f"{ours}/feed_forward/hidden",
            [f"{feed_forward}.gate_proj", f"{feed_forward}.up_proj"],
            widths=(hidden_width(block.feed_forward),) * 2,
        )
        yield from dense(f"{ours}/feed_forward/output", [f"{feed_forward}.down_proj"])
    yield from norm("decoder/norm", "norm")
    yield from dense("head", ["lm_head"], resized_by="vocabulary_size")


LLAMA = Family(
    model=TransformerLM,
    position=RotaryEmbedding,
    architectures={
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    },
    arguments=_arguments,
    settings=_settings,
    links=_links,
    prefix="model.",
    unprefixed=("lm_head.",),
    table="embed_tokens.weight",
    head="lm_head.weight",
    is_tied=False,
    buffers=r"rotary_emb\.inv_freq$",
)
