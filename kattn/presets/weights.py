"""The weights of a model by name, and how they get the numbers of tensors."""

import keras

from kattn.arguments import error
from kattn.presets.safetensors_file import FLOATS

SHOWN = 10  # names in a message
DTYPES = {
    "float64": FLOATS["F64"],
    "float32": FLOATS["F32"],
    "float16": FLOATS["F16"],
    "bfloat16": FLOATS["BF16"],
}


def weights_by_path(model):
    """The weights of a model by their paths below it; those of low rank are added to theirs.

    Args:
        model: A model that is built.

    Returns:
        A dict of variables; in place of the matrix of a layer with weights of low rank stands a
        tensor, their sum.
    """
    weights = {weight.path: weight for weight in model.weights}
    for layer in model._flatten_layers():
        if getattr(layer, "lora_enabled", False):
            for name in ("lora_kernel_a", "lora_kernel_b"):
                del weights[f"{layer.path}/{name}"]
            weights[f"{layer.path}/kernel"] = layer.kernel
    return {path.removeprefix(f"{model.path}/"): weight for path, weight in weights.items()}


def load_weights(model, links, tensors, *, given, left_out=(), source, print_fn):
    """Gives a model the numbers of tensors, one at a time, after all of them were checked.

    Args:
        model: A model that is built.
        links: Iterable of `Link`. Those of weights that the model does not have are passed over.
        tensors: Dict of `StoredTensor` by name.
        given: Arguments that the caller gave, which may ask for tables of other sizes.
        left_out: Names of tensors for which the model has no place.
        source: Where the tensors come from, for messages.
        print_fn: Function that is called with lines of text that say what was loaded, if that is
            not all; or None.

    Raises:
        ValueError: If a tensor is missing, superfluous, or of another shape or dtype.
    """
    weights = weights_by_path(model)
    links = [
        link
        for link in links
        if link.weight in weights
        and not (link.optional and tensors.keys().isdisjoint(part.name for part in link.parts))
    ]
    resized = _check(links, weights, tensors, given, source)
    for link in links:
        weight = weights[link.weight]
        weight.assign(link.gather(weight, tensors))
    new = sorted(set(weights) - {link.weight for link in links})
    if print_fn is not None and (resized or left_out or new):
        print_fn(f"{source}: {len(tensors)} tensors were matched.")
        for title, names in (
            ("Resized", resized),
            ("Left out, as the model has no place for them", left_out),
            ("Weights that stay random", new),
        ):
            if names:
                print_fn(f"{title}: {_some(names)}")


def dtype_of(weight):
    """The NumPy dtype of a weight; raises ValueError if it is quantised."""
    name = keras.backend.standardize_dtype(weight.dtype)
    if name not in DTYPES:
        raise error("Weights must be floats; write a model before you quantise it", dtype=name)
    return DTYPES[name]


def _check(links, weights, tensors, given, source):
    """The tensors that are resized; raises ValueError unless each link finds what it needs."""
    missing: list[str] = []
    misshapen: list[str] = []
    resized: list[str] = []
    not_of_floats: list[str] = []
    superfluous = dict.fromkeys(tensors)
    for link in links:
        for part, _, shape in link.pieces(tuple(weights[link.weight].shape)):
            superfluous.pop(part.name, None)
            if part.name not in tensors:
                missing.append(part.name)
                continue
            tensor = tensors[part.name]
            if tensor.dtype is None:
                not_of_floats.append(part.name)
            if tensor.shape != shape:
                may_differ = link.resized_by in given and tensor.shape[1:] == shape[1:]
                changed = f"{part.name} from {tensor.shape} to {shape}"
                (resized if may_differ else misshapen).append(changed)
    faults = {
        "missing": missing,
        "superfluous": list(superfluous),
        "misshapen": misshapen,
        "not_of_floats": not_of_floats,
    }
    faults = {kind: _some(names) for kind, names in faults.items() if names}
    if faults:
        raise error("The tensors must be those that the model needs", **faults, source=str(source))
    return resized


def _some(names):
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
