"""The numbers of parameters of published sizes, of which none is allocated here."""

import keras
import pytest

from kattn import models, profile

# As `sum(p.numel() for p in model.parameters())` of the `transformers` package gives them; for
# nanoGPT its own README's 0.80 and 10.65 million, and the positions, which it does not count; and
# `vit_b_16` and its relatives of `torchvision`, and tiny and small of DeiT, with 1000 classes.
PARAMETERS = {
    "TransformerLM": {
        "nanogpt-char-cpu": 795_904 + 64 * 128,
        "nanogpt-char-gpu": 10_646_784 + 256 * 384,
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "llama-2-7b": 6_738_415_616,
        "tinyllama-1.1b": 1_100_048_384,
        "smollm-135m": 134_515_008,
        "mistral-7b": 7_241_732_096,
        "qwen2-0.5b": 494_032_768,
        "qwen3-0.6b": 596_049_920,
    },
    "TransformerClassifier": {"bert-base": 109_482_240 + 2 * 769},  # and a head of two classes
    "TransformerSeq2Seq": {"t5-small": 60_506_624},
    "VisionTransformer": {
        "vit-tiny-16": 5_717_416,
        "vit-small-16": 22_050_664,
        "vit-base-16": 86_567_656,
        "vit-base-32": 88_224_232,
        "vit-large-16": 304_326_632,
        "vit-huge-14": 632_045_800,
    },
}
CASES = [(kind, size) for kind, sizes in PARAMETERS.items() for size in sizes]


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_parameters(kind, size):
    classes = {"TransformerClassifier": 2, "VisionTransformer": 1000}
    given = {"num_classes": classes[kind]} if kind in classes else {}
    shapes = {"TransformerSeq2Seq": [(1, 1)] * 2, "VisionTransformer": (1, 224, 224, 3)}
    shape = shapes.get(kind, (1, 1))
    count = profile.parameter_count(lambda: getattr(models, kind).from_size(size, **given), shape)
    assert count == PARAMETERS[kind][size]


def test_every_size_is_counted():
    for kind, parameters in PARAMETERS.items():
        model = getattr(models, kind)
        assert set(model.sizes) == set(parameters)
        assert all(f'"{size}"' in model.__doc__ for size in model.sizes)


def test_arguments_may_differ_from_those_of_a_size():
    model = models.TransformerLM.from_size(
        "nanogpt-char-cpu", vocabulary_size=11, dropout=0.1, name="mine", dtype="mixed_bfloat16"
    )
    assert (model.vocabulary_size, model.options.dropout, model.name) == (11, 0.1, "mine")
    for part in model._flatten_layers():
        assert part.dtype_policy.name == "mixed_bfloat16", part.name
    again = models.TransformerLM.from_config(model.get_config())
    assert keras.tree.flatten(again.get_config()) == keras.tree.flatten(model.get_config())


def test_no_such_size():
    with pytest.raises(ValueError, match=r"`size` must be one of nanogpt-char-cpu, .*'gpt3'"):
        models.TransformerLM.from_size("gpt3")
