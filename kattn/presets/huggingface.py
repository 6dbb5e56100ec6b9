"""Models from folders of the `transformers` library, and back."""

from kattn.arguments import check_choice, check_integers, error
from kattn.presets.bert import BERT
from kattn.presets.facts import facts
from kattn.presets.folder import Config, read_config, stored_tensors, write_folder
from kattn.presets.gpt2 import GPT2
from kattn.presets.llama import LLAMA
from kattn.presets.t5 import T5
from kattn.presets.vit import VIT
from kattn.presets.weights import load_weights, weights_by_path

FAMILIES = {
    model_type: family
    for family in (GPT2, LLAMA, BERT, T5, VIT)
    for model_type in family.architectures
}


def from_huggingface(folder, *, print_fn=print, **options):
    """A model with the weights of a folder that the `transformers` library wrote.

    The folder holds `config.json` and `model.safetensors`, or several such files with an index.
    Nothing in it is run or unpickled, and `transformers` is not needed; the package `safetensors`
    is. The tensors are read one at a time, after all names and shapes have been checked.

    The `model_type` in config.json says what the model becomes: "gpt2", "llama", "mistral",
    "qwen2" and "qwen3" a `TransformerLM`, "bert" a `TransformerClassifier`, "t5" a
    `TransformerSeq2Seq`, "vit" a `VisionTransformer`.

    Args:
        folder: Path of the folder.
        print_fn: Function that is called with lines of text that say what was matched, resized,
            left out, and stays random, if the folder and the model do not match in all. None to say
            nothing.
        **options: Arguments of the model that override those that config.json implies, such as
            `dropout=0.0` or `dtype="bfloat16"`. With another `vocabulary_size`, `position` or
            `num_token_types` than in the folder, a table keeps the rows that both have, and its
            further rows are random. A BERT or ViT takes `num_classes`, for a new head with random
            weights in place of that of the folder, if there is one.

    Returns:
        A model that is built. The hidden states of a BERT are what `model.encode` gives.

    Raises:
        ValueError: If the architecture is unknown; if config.json asks for something that kattn's
            models do not have; if a tensor is missing, superfluous or of another shape; or if a
            file is truncated. Nothing is loaded then.

    Example:
        >>> position = kattn.layers.LearnedPositions(8)
        >>> model = kattn.models.TransformerLM(20, 1, 2, 8, position=position)
        >>> model.build((None, None))
        >>> kattn.presets.to_huggingface(model, "small-gpt2")
        >>> again = kattn.presets.from_huggingface("small-gpt2")
        >>> tokens = np.array([[3, 1, 4]])
        >>> bool(keras.ops.all(again(tokens) == model(tokens)))
        True
    """
    config = read_config(folder)
    if config.get("quantization_config") is not None:
        raise error(
            "`quantization_config` must not be set: quantised weights cannot be read",
            file=config.source,
        )
    check_choice(tuple(FAMILIES), model_type=config["model_type"])
    family = FAMILIES[config["model_type"]]
    tensors = family.tensors(config, stored_tensors(folder))
    left_out = [name for name in tensors if family.leaves_out(name, options)]
    tensors = {name: x for name, x in tensors.items() if name not in left_out}
    model = family.model(**{**_arguments(family, config, tensors, options), **options})
    model.build(family.input_shape(model))
    load_weights(
        model,
        family.links(model, config),
        tensors,
        given=options,
        left_out=left_out,
        source=folder,
        print_fn=print_fn,
    )
    return model


def to_huggingface(model, folder, *, shard_bytes=5_000_000_000, **settings):
    """Writes a model as a folder that the `transformers` library reads.

    The tensors are written one at a time, in the dtype of the weights.

    Args:
        model: A `TransformerLM`, `TransformerClassifier`, `TransformerSeq2Seq` or
            `VisionTransformer` that is built, and whose arguments are those of a GPT-2, Llama,
            Mistral, Qwen2, Qwen3, BERT, T5 or ViT.
        folder: Path of the folder, which is made if there is none. A model in it is overwritten.
        shard_bytes: Number of bytes from which on a further file is begun.
        **settings: Further settings for config.json, which a model of kattn does not have, such as
            `eos_token_id=2` or `max_position_embeddings=4096`.

    Returns:
        None. The folder holds `config.json` and `model.safetensors`, or several such files with an
        index.

    Raises:
        ValueError: If the model is not built or is quantised, or if it does what none of these
            architectures does; the message names it.

    Example:
        >>> options = dict(norm="rms", activation="swiglu", use_bias=False)
        >>> position = kattn.layers.RotaryEmbedding()
        >>> model = kattn.models.TransformerLM(20, 1, 2, 8, position=position, **options)
        >>> model.build((None, None))
        >>> kattn.presets.to_huggingface(model, "small-llama", eos_token_id=2)
    """
    check_integers(1, shard_bytes=shard_bytes)
    if not getattr(model, "built", False):
        raise error(
            "A model must be built before it is written: call it, or its `build`, first",
            model=type(model).__name__,
        )
    model_type, family, tensors, implied = _described(model)
    if clashes := sorted(set(settings) & set(implied)):
        raise error("Further settings must not be those that the model implies", settings=clashes)
    dtype = next(iter(tensors.values())).dtype.name
    written = {
        "model_type": model_type,
        "architectures": [family.architectures[model_type]],
        "torch_dtype": dtype,
        **implied,
        **settings,
    }
    tensors = {family.name_in_folder(name): tensor for name, tensor in tensors.items()}
    write_folder(folder, written, tensors, shard_bytes)


def _arguments(family, config, tensors, options):
    """The arguments that the settings give; ValueError for a setting of a wrong type."""
    try:
        return family.arguments(config, tensors, options)
    except (TypeError, AttributeError) as cause:
        raise error(
            f"Each setting must have the type that `transformers` gives it: {cause}",
            file=config.source,
        ) from cause


def _described(model):
    """The first `model_type` whose settings can say all that the model does.

    That is so if they make a model that computes the same, as `facts` tells.

    Returns:
        The `model_type`, its `Family`, the tensors by name, and the settings.
    """
    closest, weights = None, weights_by_path(model)
    for model_type, family in FAMILIES.items():
        if not isinstance(model, family.model) or not isinstance(model.position, family.position):
            continue
        found = facts(model)
        settings = {**family.settings(model_type, found, model.options), "model_type": model_type}
        config = Config(settings)
        links = [link for link in family.links(model, config) if link.weight in weights]
        tensors = {
            name: tensor for link in links for name, tensor in link.split(weights[link.weight])
        }
        said = facts(family.model(**family.arguments(config, tensors, {})))
        differing = {name: found[name] for name in found if found[name] != said[name]}
        others = sorted(set(weights) - {link.weight for link in links})
        if others and not differing:  # such as one of a layer that was built before the model
            differing["weights"] = others
        if not differing:
            return model_type, family, tensors, settings
        if closest is None or len(differing) < len(closest):
            closest = differing
    raise error(
        "To be written for transformers, a model must be a GPT-2, Llama, Mistral, Qwen2, Qwen3, "
        "BERT, T5 or ViT by its arguments, but this one differs from all",
        **(closest or {"model": type(model).__name__}),
    )
