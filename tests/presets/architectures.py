"""Small models of the `transformers` library with random weights, and what ours must give.

Each of `ARCHITECTURES` is the name of a config class, of a model class, and settings off their
defaults. The folders in `tests/fixtures/huggingface` were written from them, with PyTorch and
`transformers`, by

    KERAS_BACKEND=torch python -m tests.presets.architectures
"""

import json
import pathlib
import shutil
import sys

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "huggingface"
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])  # of 17
NEW = 5  # tokens that are chosen
KEEP = np.array([[1] * 7, [1] * 4 + [0] * 3], bool)
IMAGES = np.random.default_rng(0).normal(size=(2, 4, 6, 2)).astype("float32")
TYPES = np.array([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0]])
SIZES = {
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GROUPED = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 17, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
T5 = {
    "vocab_size": 17,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 12,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 5,
    "layer_norm_epsilon": 1e-4,
}
ARCHITECTURES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, "n_inner": 12, "layer_norm_epsilon": 1e-3}),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            **GROUPED,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 3.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 20,
            },
        },
    ),
    "llama-biases-tied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            **SIZES,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
        },
    ),
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        {**GROUPED, "head_dim": 6, "sliding_window": 3},
    ),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {
            **GROUPED,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {**GROUPED, "head_dim": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-2},
    ),
    "bert": (
        "BertConfig",
        "BertForSequenceClassification",
        {**SIZES, "max_position_embeddings": 16, "num_labels": 3, "layer_norm_eps": 1e-3},
    ),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {
            **{name: SIZES[name] for name in SIZES if name != "vocab_size"},
            "image_size": [4, 6],
            "patch_size": [2, 3],
            "num_channels": 2,
            "num_labels": 3,
            "layer_norm_eps": 1e-3,
        },
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "t5-gated-untied": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}
# How the folders of some are written.
BFLOAT16 = {"qwen3"}
SHARDED = {"qwen2"}


def theirs(name):
    """A model of `transformers` whose weights are all random: norms and biases, too."""
    import torch
    import transformers

    config, model, settings = ARCHITECTURES[name]
    torch.manual_seed(5)
    settings = {**settings, "bos_token_id": None, "eos_token_id": None}  # no row ends early
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    if name == "t5-gated-untied":  # version 5 ties all T5s, but loads those that are not
        made.lm_head.weight = torch.nn.Parameter(torch.empty(17, 8))
    with torch.no_grad():
        for key, weight in made.named_parameters():
            around = 1.0 if "norm" in key.lower() or "ln_" in key else 0.0
            random = around + 0.5 * torch.randn(weight.shape)
            weight.copy_(random.to(torch.bfloat16) if name in BFLOAT16 else random)
    return made


def expected(name, model):
    """Tokens, of which it chose those behind the prompt, and its logits for them.

    Of a BERT and of the source of a T5, only `KEEP` are real. A ViT has images in their place.
    """
    import torch

    if name == "vit":
        with torch.no_grad():
            return IMAGES, model(torch.tensor(IMAGES).permute(0, 3, 1, 2)).logits.numpy()
    tokens, keep, types = (torch.tensor(x.astype("int64")) for x in (TOKENS, KEEP, TYPES))
    with torch.no_grad():
        if name == "bert":
            given = {"attention_mask": keep, "token_type_ids": types}
            return TOKENS.astype("int32"), model(tokens, **given).logits.numpy()
        greedy = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
        if name.startswith("t5"):
            given = {"attention_mask": keep, "decoder_start_token_id": 0, **greedy}
            chosen = model.generate(tokens, **given)
            logits = model(tokens, attention_mask=keep, decoder_input_ids=chosen).logits
        else:
            chosen = model.generate(tokens, attention_mask=torch.ones_like(tokens), **greedy)
            logits = model(chosen).logits
    return chosen.numpy().astype("int32"), logits.numpy()


def inputs_of_ours(name, tokens):
    """The arguments and the keyword arguments of our model for the same logits."""
    if name == "bert":
        return [tokens], {"mask": KEEP, "token_types": TYPES}
    if name.startswith("t5"):
        return [(TOKENS, tokens)], {"mask": (KEEP, None)}
    return [tokens], {}


def write(name, folder):
    """A folder as `transformers` writes it, and beside it the tokens and logits."""
    import torch

    model = theirs(name)
    tokens, logits = expected(name, model)
    if name in BFLOAT16:
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="3KB" if name in SHARDED else "5GB")
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez(folder / "expected.npz", tokens=tokens, logits=logits)


if __name__ == "__main__":
    for architecture in sys.argv[1:] or ARCHITECTURES:
        shutil.rmtree(FIXTURES / architecture, ignore_errors=True)
        write(architecture, FIXTURES / architecture)
