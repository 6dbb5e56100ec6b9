"""The arguments of models whose sizes are published, by the names of the sizes.

Each entry is a function of the dtype of the model, as every model needs a position layer of its
own. Its source is the file of settings that the weights were published with.
"""

import functools
from types import MappingProxyType

from keras.layers import LayerNormalization, RMSNormalization

from kattn.layers.position.learned_positions import LearnedPositions
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.t5_relative_bias import T5RelativeBias


def nano_gpt(num_layers, num_heads, width, length, *, dtype=None):
    """Models of the 65 characters of tiny Shakespeare, without biases.

    https://github.com/karpathy/nanoGPT: `config/train_shakespeare_char.py`, for the CPU with the
    flags in README.md; `bias = False` stands in `train.py`.
    """
    return {
        "vocabulary_size": 65,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "width": width,
        "position": LearnedPositions(length, dtype=dtype),
        "norm": LayerNormalization(epsilon=1e-5, center=False, dtype=dtype),
        "use_bias": False,
    }


def gpt2(num_layers, num_heads, width, *, dtype=None):
    """GPT-2 of four sizes.

    https://huggingface.co/openai-community/gpt2/blob/main/config.json, and gpt2-medium, gpt2-large
    and gpt2-xl beside it.
    """
    return {
        "vocabulary_size": 50257,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "width": width,
        "position": LearnedPositions(1024, dtype=dtype),
        "activation": "gelu_tanh",
    }


def llama(
    vocabulary_size,
    num_layers,
    num_heads,
    width,
    hidden_dim,
    *,
    base=1e4,
    epsilon=1e-5,
    dtype=None,
    **options,
):
    """Llama and models like it: rotary positions, RMS norms and SwiGLU without biases.

    - llama-2-7b: https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json
    - tinyllama-1.1b: https://huggingface.co/TinyLlama/TinyLlama_v1.1/blob/main/config.json
    - smollm-135m: https://huggingface.co/HuggingFaceTB/SmolLM-135M/blob/main/config.json
    - mistral-7b: https://huggingface.co/mistralai/Mistral-7B-v0.1/blob/main/config.json
    - qwen2-0.5b: https://huggingface.co/Qwen/Qwen2-0.5B/blob/main/config.json
    - qwen3-0.6b: https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    """
    return {
        "vocabulary_size": vocabulary_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "width": width,
        "hidden_dim": hidden_dim,
        "position": RotaryEmbedding(base, dtype=dtype),
        "activation": "swiglu",
        "norm": RMSNormalization(epsilon=epsilon, dtype=dtype),
        "use_bias": False,
        **options,
    }


def bert_base(*, dtype=None):
    """BERT base, https://huggingface.co/google-bert/bert-base-uncased/blob/main/config.json."""
    return {
        "vocabulary_size": 30522,
        "num_layers": 12,
        "num_heads": 12,
        "width": 768,
        "position": LearnedPositions(512, dtype=dtype),
        "pooling": "first",
        "use_pooler": True,
        "num_token_types": 2,
        "use_embedding_norm": True,
        "norm": LayerNormalization(epsilon=1e-12, dtype=dtype),
        "placement": "post",
    }


def t5_small(*, dtype=None):
    """T5 small, https://huggingface.co/google-t5/t5-small/blob/main/config.json."""
    return {
        "vocabulary_size": 32128,
        "num_layers": 6,
        "num_heads": 8,
        "width": 512,
        "hidden_dim": 2048,
        "position": T5RelativeBias(dtype=dtype),
        "decoder_position": T5RelativeBias(bidirectional=False, dtype=dtype),
        "activation": "relu",
        "norm": "rms",
        "use_bias": False,
        "padding_token": 0,
    }


def patch_tst(input_length, *, reduced=False, dtype=None):
    """PatchTST of 42 or 64 patches, for small data sets in a reduced size.

    Nie et al. 2023, sec. 4.1 and A.1.4, https://arxiv.org/abs/2211.14730
    """
    num_heads, width, hidden_dim = (4, 16, 128) if reduced else (16, 128, 256)
    return {
        "input_length": input_length,
        "num_layers": 3,
        "num_heads": num_heads,
        "width": width,
        "hidden_dim": hidden_dim,
        "patch_length": 16,
        "stride": 8,
        "dropout": 0.2,
    }


def vit(patch_size, num_layers, num_heads, width, *, dtype=None):
    """Vision Transformers for images of 224 x 224.

    Base, large and huge: Dosovitskiy et al. 2020, table 1, https://arxiv.org/abs/2010.11929.
    Tiny and small: Touvron et al. 2020, table 1, https://arxiv.org/abs/2012.12877.
    """
    return {
        "image_size": 224,
        "patch_size": patch_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "width": width,
        "norm": LayerNormalization(epsilon=1e-6, dtype=dtype),
    }


_of = functools.partial
_untied = functools.partial(llama, tie_embeddings=False)
LANGUAGE_MODELS = MappingProxyType(
    {
        "nanogpt-char-cpu": _of(nano_gpt, 4, 4, 128, 64),
        "nanogpt-char-gpu": _of(nano_gpt, 6, 6, 384, 256),
        "gpt2": _of(gpt2, 12, 12, 768),
        "gpt2-medium": _of(gpt2, 24, 16, 1024),
        "gpt2-large": _of(gpt2, 36, 20, 1280),
        "gpt2-xl": _of(gpt2, 48, 25, 1600),
        "llama-2-7b": _of(_untied, 32000, 32, 32, 4096, 11008),
        "tinyllama-1.1b": _of(_untied, 32000, 22, 32, 2048, 5632, num_key_value_heads=4),
        "smollm-135m": _of(llama, 49152, 30, 9, 576, 1536, num_key_value_heads=3),
        "mistral-7b": _of(_untied, 32000, 32, 32, 4096, 14336, num_key_value_heads=8, window=4096),
        "qwen2-0.5b": _of(
            llama,
            *(151936, 24, 14, 896, 4864),
            base=1e6,
            epsilon=1e-6,
            num_key_value_heads=2,
            use_qkv_bias=True,
        ),
        "qwen3-0.6b": _of(
            llama,
            *(151936, 28, 16, 1024, 3072),
            base=1e6,
            epsilon=1e-6,
            num_key_value_heads=8,
            key_dim=128,
            use_qk_norm=True,
        ),
    }
)
CLASSIFIERS = MappingProxyType({"bert-base": bert_base})
SEQ2SEQ_MODELS = MappingProxyType({"t5-small": t5_small})
TIME_SERIES_MODELS = MappingProxyType(
    {
        "patchtst-42": _of(patch_tst, 336),
        "patchtst-64": _of(patch_tst, 512),
        "patchtst-42-reduced": _of(patch_tst, 336, reduced=True),
        "patchtst-64-reduced": _of(patch_tst, 512, reduced=True),
    }
)
VISION_MODELS = MappingProxyType(
    {
        "vit-tiny-16": _of(vit, 16, 12, 3, 192),
        "vit-small-16": _of(vit, 16, 12, 6, 384),
        "vit-base-16": _of(vit, 16, 12, 12, 768),
        "vit-base-32": _of(vit, 32, 12, 12, 768),
        "vit-large-16": _of(vit, 16, 24, 16, 1024),
        "vit-huge-14": _of(vit, 14, 32, 16, 1280),
    }
)
