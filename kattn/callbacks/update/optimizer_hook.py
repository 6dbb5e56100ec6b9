"""The one place where callbacks reach into an optimizer."""

import contextlib
import weakref

import keras
from keras import ops

from kattn import backend
from kattn.arguments import error
from kattn.callbacks.update.attributes import replaced_attributes
from kattn.callbacks.update.update import Update


class OptimizerHook:
    """Runs the rules of callbacks in each update of one optimizer. `hook_of` returns it.

    The hook replaces six methods of one optimizer by attributes of the instance. So the class of
    the optimizer, its config and the state that it saves stay those of Keras.

    Args:
        optimizer: A Keras optimizer that changes weights itself: not one that scales the loss for
            another, and not a `MultiOptimizer`.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.rules = []
        self._own = {}  # by id: a variable of a rule, its first value, its rule
        self._staying = set()
        self._built = None
        self._update = None
        self._stock = {}
        shadows = {
            "_backend_apply_gradients": self._apply,
            "_clip_gradients": self._clip,
            "_apply_weight_decay": self._decay,
            "_backend_update_step": self._change,
            "_get_current_learning_rate": self._rate,
            "_backend_reset_gradient_accumulators": self._reset_accumulators,
        }
        for name, shadow in shadows.items():
            self._stock[name] = getattr(optimizer, name)
            object.__setattr__(optimizer, name, shadow)  # Keras's own setter would track it

    def use(self, owner, signature, make):
        """Give a callback its rule: one that is left from an earlier fit, or a new one.

        Args:
            owner: The callback.
            signature: What the trace of the rule depends on. A rule that no callback uses now is
                taken if its signature is equal.
            make: Function without arguments that returns a new rule.

        Returns:
            The rule, and whether it is new: then the training step must be traced again.

        Raises:
            ValueError: If another callback of the same fit sets the same number.
        """
        self._release_leftovers(owner)
        for rule in self.rules:
            if rule.signature == signature and rule.owner in (None, owner):
                if rule.last_owner() is not owner:
                    self._reset(rule)
                self._check_rivals(rule, owner)
                rule.owner, rule.last_owner = owner, weakref.ref(owner)
                return rule, False
        rule = make()
        self._check_rivals(rule, owner)
        rule.signature, rule.owner, rule.last_owner = signature, owner, weakref.ref(owner)
        self._built = rule
        rule.build(self)
        self.rules = sorted([*self.rules, rule], key=lambda rule: rule.order)
        return rule, True

    def _release_leftovers(self, owner):
        """Release the rules of a `fit` that raised an error.

        All callbacks of one `fit` have the same dict of parameters, by which they are known.
        """
        for rule in self.rules:
            if rule.owner is not None and rule.owner.params is not owner.params:
                rule.owner.release()
                rule.release()  # whatever model the callback has now
                rule.owner = None

    def _check_rivals(self, rule, owner):
        for other in self.rules:
            is_rival = other.sets is not None and other.sets == rule.sets
            if is_rival and other is not rule and other.owner not in (None, owner):
                names = [type(each).__name__ for each in (other.owner, owner)]
                for each in self.rules:  # this fit ends here
                    if each.owner is not None:
                        each.owner.release()
                raise error(
                    "Two callbacks of a fit must not set the same number",
                    number=rule.sets,
                    callbacks=names,
                )

    def _reset(self, rule):
        """Give the variables of a rule the values that they had when it was new."""
        for variable, value, maker in self._own.values():
            if maker is rule:
                variable.assign(ops.full(variable.shape, value, variable.dtype))

    def rule_of(self, owner):
        """Return the rule that a callback uses now, or None."""
        return next((rule for rule in self.rules if rule.owner is owner), None)

    def add_variable(self, shape, name, *, dtype="float32", value=0.0, stays=False):
        """Make a variable for a rule. To be called in `Rule.build`.

        It is a variable of the optimizer, so that JAX carries it along, but it is left out when the
        optimizer is saved.

        Args:
            shape: Shape of the variable, a tuple.
            name: Name of the variable.
            dtype: Data type of the variable.
            value: First value of all its numbers.
            stays: Whether the variable stays as it is when `SpikeGuard` sets the training back:
                True if the host sets it, or if it records what has happened.

        Returns:
            A Keras variable.
        """
        variable = self.optimizer.add_variable(
            shape, keras.initializers.Constant(value), dtype, name=name
        )
        self._own[id(variable)] = (variable, value, self._built)
        if stays:
            self._staying.add(id(variable))
        return variable

    def state(self):
        """Return the variables of the optimizer and of rules that are set back with a training."""
        return [v for v in self.optimizer.variables if id(v) not in self._staying]

    def hide_variables(self, optimizer):
        """Make an optimizer save and load its state as if rules had no variables."""
        if "save_own_variables" in vars(optimizer):
            return

        def save_own_variables(store):
            for i, variable in enumerate(self.stock_variables(optimizer)):
                store[str(i)] = ops.convert_to_numpy(variable)

        def load_own_variables(store):
            variables = self.stock_variables(optimizer)
            if len(store.keys()) != len(variables):
                type(optimizer).load_own_variables(optimizer, store)  # which warns
                return
            for i, variable in enumerate(variables):
                variable.assign(store[str(i)])

        object.__setattr__(optimizer, "save_own_variables", save_own_variables)
        object.__setattr__(optimizer, "load_own_variables", load_own_variables)

    def stock_variables(self, optimizer):
        """Return the variables of an optimizer without those of rules."""
        return [v for v in optimizer.variables if id(v) not in self._own]

    def _apply(self, gradients, variables):
        self._update = Update(
            self.optimizer, variables, self.rules, self._stock["_get_current_learning_rate"]
        )
        try:
            self._stock["_backend_apply_gradients"](gradients, variables)
        finally:
            self._update = None

    def _clip(self, gradients):
        update = self._update
        if update is not None:
            if any(rule.sees_gradients for rule in self.rules):
                gradients = [backend.dense_gradient(g) for g in gradients]
            update.gradients = list(gradients)
            _ = update.factors  # once, and outside of the branch that makes the update
            for rule in self.rules:
                update.numbers.update(rule.numbers(update))
            for rule in self.rules:
                rule.change_gradients(update)
            gradients = update.gradients
        return self._stock["_clip_gradients"](gradients)

    def _decay(self, variables):
        if self._update is None:
            self._stock["_apply_weight_decay"](variables)
        else:
            self._update.decays = True  # with the rest, by `_change`

    def _rate(self):
        if self._update is None or "learning_rate" not in self._update.numbers:
            return self._stock["_get_current_learning_rate"]()
        return self._update.numbers["learning_rate"]

    def _change(self, gradients, variables, learning_rate):
        update = self._update
        if update is None:
            self._stock["_backend_update_step"](gradients, variables, learning_rate)
            return

        def change():
            with replaced_attributes(self.optimizer, update.numbers), _multiplied(update):
                if update.decays:
                    self._stock["_apply_weight_decay"](update.variables)
                self._stock["_backend_update_step"](gradients, variables, learning_rate)

        if any(rule.sees_changes for rule in self.rules):
            update.before = [ops.copy(ops.convert_to_tensor(v)) for v in update.variables]
        if update.is_good is None:
            change()
        else:
            touched = [*update.variables, *self.stock_variables(self.optimizer)]
            backend.update_if(update.is_good, change, touched)
            self._count_back(update.is_good)
        for rule in self.rules:
            rule.after_update(update)

    def _reset_accumulators(self):
        """Set accumulated gradients to 0. Keras multiplies by 0 on PyTorch, which keeps NaN."""
        for variable in self.optimizer._accumulated_gradients:
            if variable is not None:
                variable.assign(ops.zeros(variable.shape, variable.dtype))

    def _count_back(self, is_good):
        """Subtract the step that Keras is about to count, if the update was skipped."""
        counter = self.optimizer._iterations
        steps = self.optimizer.gradient_accumulation_steps or 1
        now = ops.convert_to_tensor(counter)
        counter.assign(ops.where(is_good, now, now - ops.cast(steps, now.dtype)))


def hook_of(model):
    """Return the hook of a model's optimizer. It is made if there is none yet.

    Args:
        model: A compiled model that has been built. Its optimizer is built here if it was not.

    Returns:
        The `OptimizerHook` of the optimizer that changes the weights.

    Raises:
        ValueError: If the model has no optimizer, has several, or has no weights yet.
    """
    outer = getattr(model, "optimizer", None)
    if outer is None:
        raise error(
            "The model must be compiled with an optimizer", model=model.name, optimizer=None
        )
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
        if not model.built:
            raise error(
                "The model must be built before fit: give it an Input, or call it on a batch",
                model=model.name,
                built=False,
            )
        outer.build(model.trainable_variables)
    hook = vars(optimizer).get("_kattn_hook")
    if hook is None:
        hook = OptimizerHook(optimizer)
        object.__setattr__(optimizer, "_kattn_hook", hook)
    for each in chain:
        hook.hide_variables(each)
    return hook


@contextlib.contextmanager
def _multiplied(update):
    """Multiply the changes that are made in the block by the factors of the rules.

    Changes and not gradients, as the size of a gradient means nothing to Adam.
    """
    before = []
    for variable, factor in zip(update.variables, update.factors, strict=True):
        if factor is not None:
            before.append((variable, factor, ops.copy(ops.convert_to_tensor(variable))))
    yield
    for variable, factor, old in before:
        new = ops.convert_to_tensor(variable)
        scaled = old + (new - old) * ops.cast(factor, new.dtype)
        # At 0 and 1 bit for bit, and a weight at rest stays what it is whatever its gradient.
        variable.assign(ops.where(factor == 1.0, new, ops.where(factor == 0.0, old, scaled)))
