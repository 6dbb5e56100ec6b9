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

    The hook replaces seven methods of one optimizer by attributes of the instance. So the class of
    the optimizer, its config and the state that it saves stay those of Keras.

    While a callback sets the learning rate, `optimizer.learning_rate` is the rate that the next
    update will have. Constraints of weights are part of the update: rules that read weights see
    them as they will be, and a skipped update, or a weight whose multiplier is 0, has none.

    Args:
        optimizer: A Keras optimizer that changes weights itself: not one that scales the loss for
            another, and not a `MultiOptimizer`.

    Attributes:
        optimizer: As the argument.
        rules: List of the rules, in their order.
        has_updated: Whether the optimizer has been asked for an update since its last rule was
            made: by the training step, when it was traced.
        staying: Ids of the variables that stay when a training is set back.
        moves: How often something else than an update has set the number of updates.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.rules = []
        self.has_updated = False
        self.moves = 0
        self._constraints = {}  # of weights, by id, while an update is made
        self._is_applying = False
        self._own = {}  # by id: a variable of a rule, its first value, its rule
        self.staying = set()
        self._built = None
        self._update = None
        self._stock = {}
        shadows = {
            "apply": self._apply_all,
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
        self._watch_iterations(optimizer._iterations)

    def _watch_iterations(self, iterations):
        stock = iterations.assign

        def assign(value):
            if not self._is_applying:
                self.moves += 1
            return stock(value)

        object.__setattr__(iterations, "assign", assign)

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
            self.staying.add(id(variable))
        return variable

    @property
    def weights(self):
        """The weights that the optimizer was built for."""
        return list(self.optimizer._trainable_variables)

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

    def _apply_all(self, gradients, trainable_variables=None):
        every = trainable_variables
        if every is None:
            every = self.optimizer._trainable_variables
        else:
            every = trainable_variables = list(every)
        self.has_updated = self._is_applying = True
        try:
            with _without_constraints(every) as self._constraints:
                self._stock["apply"](gradients, trainable_variables)
        finally:
            self._is_applying = False

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
        update, own_rate = self._update, self._stock["_get_current_learning_rate"]
        if update is None:  # someone asks from outside
            update = Update(self.optimizer, [], self.rules, own_rate)
            for rule in self.rules:
                if rule.owner is not None:
                    update.numbers.update(rule.numbers(update))
        return update.numbers["learning_rate"] if "learning_rate" in update.numbers else own_rate()

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
            self._constrain(update)

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

    def _constrain(self, update):
        """Apply the constraints of weights, which Keras would apply after its update."""
        for variable, factor in zip(update.variables, update.factors, strict=True):
            constraint = self._constraints.get(id(variable))
            if constraint is not None:
                value = constraint(variable)
                if factor is not None:
                    value = ops.where(factor == 0.0, ops.convert_to_tensor(variable), value)
                variable.assign(value)

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


@contextlib.contextmanager
def _without_constraints(variables):
    """Take the constraints from variables for the length of a block; yield them by id."""
    constrained = [variable for variable in variables if variable.constraint is not None]
    constraints = {id(variable): variable.constraint for variable in constrained}
    for variable in constrained:
        variable.constraint = None
    try:
        yield constraints
    finally:
        for variable in constrained:
            variable.constraint = constraints[id(variable)]


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
