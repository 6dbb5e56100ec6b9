"""Which optimizer of a model a callback acts on, and its hook."""

import keras

from kattn.arguments import error
from kattn.callbacks.update.optimizer_hook import OptimizerHook


def hook_of(model, optimizer=None):
    """Return the hook of an optimizer of a model. It is made if there is none yet.

    Args:
        model: A compiled model that has been built. Its optimizer is built here if it was not.
        optimizer: The optimizer, or the name of the attribute of the model that holds it. None for
            `model.optimizer`.

    Returns:
        The `OptimizerHook` of the optimizer that changes the weights.

    Raises:
        ValueError: If the model has no such optimizer, has a `MultiOptimizer`, or has no weights
            yet; or if another optimizer than `model.optimizer` has not been built.
    """
    outer = optimizer_of(model, optimizer)
    optimizer, chain = outer, [outer]
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
        chain.append(optimizer)
    if hasattr(optimizer, "optimizers"):
        raise error(
            "Callbacks that act in the update need one optimizer, which sees all gradients",
            optimizer=type(optimizer).__name__,
        )
    if not outer.built:
        is_own = outer is getattr(model, "optimizer", None)
        if not is_own:
            raise error(
                "An optimizer besides model.optimizer must be built before fit: call its "
                "build(variables) with the weights that it updates",
                optimizer=type(outer).__name__,
                built=False,
            )
        if not model.built:
            raise error(
                "The model must be built before fit: give it an Input, or call it on a batch",
                model=model.name,
                built=False,
            )
        outer.build(model.trainable_variables)
    hook = existing_hook(optimizer)
    if hook is None:
        hook = OptimizerHook(optimizer)
        object.__setattr__(optimizer, "_kattn_hook", hook)
    for each in chain:
        hook.hide_variables(each)
    return hook


def existing_hook(optimizer):
    """Return the hook of an optimizer, or of the one whose loss it scales; None if it has none."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return vars(optimizer).get("_kattn_hook")


def optimizer_of(model, optimizer=None):
    """Return an optimizer of a model. The arguments are those of `hook_of`."""
    if optimizer is None:
        outer = getattr(model, "optimizer", None)
        if outer is None:
            raise error(
                "The model must be compiled with an optimizer", model=model.name, optimizer=None
            )
        return outer
    outer = getattr(model, optimizer, None) if isinstance(optimizer, str) else optimizer
    if not isinstance(outer, keras.optimizers.Optimizer):
        raise error(
            "`optimizer` must be an optimizer, or the name of the attribute of the model that "
            "holds it",
            optimizer=optimizer,
            attributes=optimizers_in(model),
        )
    return outer


def unused_optimizer(callback):
    """The ValueError for a callback whose optimizer has made no update in an epoch."""
    return error(
        f"{type(callback).__name__} must act on an optimizer that updates weights, but the step of "
        "this model does not use it: say by `optimizer` which one it is",
        optimizer="model.optimizer" if callback.optimizer is None else callback.optimizer,
        attributes=optimizers_in(callback.model),
    )


def optimizers_in(model):
    """Return the names of the public attributes of a model that are optimizers."""
    return [
        name
        for name, value in vars(model).items()
        if isinstance(value, keras.optimizers.Optimizer) and not name.startswith("_")
    ]
