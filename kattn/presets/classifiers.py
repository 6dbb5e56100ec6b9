"""What BERT and ViT share in the `transformers` library: a head, and the names of layers."""

from kattn.arguments import error
from kattn.presets.links import dense, norm

HEAD = "classifier.weight"


def class_count(tensors, given):
    """Number of classes of the head in a folder; None if there is no head, and a new one is wanted.

    Args:
        tensors: Dict of the tensors by name.
        given: Arguments that the caller gave.

    Raises:
        ValueError: If the folder holds no head and the caller gave no `num_classes`.
    """
    if HEAD in tensors:
        return tensors[HEAD].shape[0]
    if "num_classes" not in given:
        raise error(
            "The folder holds no classifier, so say how many classes a new one shall have: "
            "from_huggingface(folder, num_classes=2)",
            num_classes=None,
        )
    return None


def label_settings(count):
    """The settings that name so many classes."""
    labels = [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def encoder_links(model, *, attention, norms):
    """The links of the blocks of an encoder.

    Args:
        model: The model.
        attention: Name of the layer of queries, keys and values in a block there.
        norms: Names of the norms of attention and feed-forward network in a block there.

    Yields:
        A `Link` for each weight of the blocks.
    """
    for i, block in enumerate(model.blocks):
        ours, theirs = f"encoder/block{i}", f"encoder.layer.{i}"
        sizes = block.attention.head_sizes
        yield from dense(
            f"{ours}/attention/qkv",
            [f"{theirs}.{attention}.{x}" for x in ("query", "key", "value")],
            widths=(sizes.query_width, sizes.key_width, sizes.value_width),
        )
        for layer, name in (
            ("attention/output", "attention.output.dense"),
            ("feed_forward/hidden", "intermediate.dense"),
            ("feed_forward/output", "output.dense"),
        ):
            yield from dense(f"{ours}/{layer}", [f"{theirs}.{name}"])
        for part, name in zip(("attention", "feed_forward"), norms, strict=True):
            yield from norm(f"{ours}/{part}_residual/norm", f"{theirs}.{name}")
