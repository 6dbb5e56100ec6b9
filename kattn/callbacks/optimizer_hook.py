"""The one place where callbacks touch an optimizer.

Weights change inside a compiled step that no callback sees. So a hook shadows six methods of one
optimizer, by attributes of the instance: its class, config and saved state stay Keras's own. What
callbacks want done in each update they hand it as a `Rule`; all numbers and all state of a rule are
variables of the optimizer, so that a change of value retraces nothing and JAX carries them along.
"""

import contextlib
import functools
import weakref
from typing import Any

import keras
from keras import ops

from kattn import backend


class Rule:
    """What a callback adds to each update. It must do nothing once `release` has been called.

    Its methods run inside the compiled step, in the order in which they stand here, rule by rule.
    """

    order = 0  # of its turn among rules
    sees_gradients = False  # which are a replica's own under tf.distribute
    sees_changes = False  # of the weights, as `after` finds them in `update.changes`
    signature: object = None  # rules of equal ones are traced alike
    sets: str | None = None  # a number of the optimizer that no other rule may set, too
    owner: Any = None  # the callback that uses it, and that which used it last
    last_owner: Any = staticmethod(lambda: None)  # a weak reference

    def build(self, hook):
        """Make variables with `hook.add_variable`."""

    def numbers(self, update):
        """Attributes of the optimizer by name, `learning_rate` among them, for this update."""
        return {}

    def gradients(self, update):
        """Change `update.gradients` and `update.is_good`."""

    def multiplier(self, variable):
        """Of the change of a variable: a tensor or number, or None for 1."""
        return

    def after(self, update):
        """The weights have changed."""

    def release(self):
        """The callback has ended: do nothing from now on."""


class Update:
    """One update of the weights, while it is computed.

    Attributes:
        optimizer: The optimizer, not one that scales its loss.
        variables: Those that are updated, a list of Keras variables.
        gradients: One for each, dense, unscaled, averaged over accumulated steps. None where they
            have been left out.
        step: Updates before this one; int32.
        numbers: What rules have set so far, by attribute.
        is_good: bool, whether to update at all. None: yes.
        before: The weights before the update, for rules that see changes.
        clipped_norm: Of all gradients together, after a rule that clips; None: none has.
    """

    def __init__(self, optimizer, variables, rules, stock_rate):
        self.optimizer = optimizer
        self.variables = list(variables)
        self.rules = rules
        self.gradients = []
        self.numbers = {}
        self.is_good = None
        self.before = []
        self.clipped_norm = None
        self.decays = False
        self._stock_rate = stock_rate
        self._norms = None
        self._is_finite = None

    @property
    def step(self):
        return ops.cast(ops.convert_to_tensor(self.optimizer.iterations), "int32")

    @property
    def learning_rate(self):
        """What the rules so far have set, else the optimizer's own: float32."""
        rate = self.numbers.get("learning_rate")
        rate = self._stock_rate() if rate is None else rate
        return ops.cast(ops.convert_to_tensor(rate), "float32")

    def norms(self):
        """Of the gradients before any rule: `(len(variables),)` float32; 0 where weights rest."""
        if self._norms is None:
            norms = backend.norms(self.gradients)
            self._is_finite = ops.isfinite(ops.sum(ops.square(norms)))
            self._norms = self._of_moving(norms, range(len(self.variables)))
        return self._norms

    def norms_of(self, gradients, members):
        """Of gradients of some variables, by their indices; 0 where weights rest."""
        return self._of_moving(backend.norms(gradients), members)

    def _of_moving(self, norms, members):
        factors = [self.factors[i] for i in members]
        if all(factor is None for factor in factors):
            return norms
        moves = [1.0 if f is None else ops.cast(f != 0, "float32") for f in factors]
        return ops.where(ops.stack(moves) > 0, norms, 0.0)

    def is_finite(self):
        """Whether their joint norm is, weights that rest included: bool."""
        self.norms()
        return self._is_finite

    def changes(self):
        """What the update has added to each weight, for `Rule.after`: float32."""
        pairs = zip(self.variables, self.before, strict=True)
        return [ops.cast(v, "float32") - ops.cast(old, "float32") for v, old in pairs]

    @functools.cached_property
    def factors(self):
        """Of the change of each variable: float32, or None for 1."""
        return [self._factor(variable) for variable in self.variables]

    def _factor(self, variable):
        found = [rule.multiplier(variable) for rule in self.rules]
        product = None
        for factor in found:
            if factor is not None:
                factor = ops.cast(ops.convert_to_tensor(factor), "float32")
                product = factor if product is None else product * factor
        return product

    def require(self, condition):
        """Update only if this is True, too."""
        if self.is_good is not None:
            condition = ops.logical_and(self.is_good, condition)
        self.is_good = condition


class OptimizerHook:
    """Runs rules in each update of one optimizer; see `hook_of`."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.rules = []
        self._own = {}  # variables of rules by id, with their first values and their rule
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
        """The rule of a callback, and whether it is new, so that the step must be traced again.

        Args:
            owner: The callback.
            signature: Equal signatures are traced alike: a released rule is taken over.
            make: Makes a rule without arguments.
        """
        self._release_leftovers(owner)
        for rule in self.rules:
            if rule.signature == signature and rule.owner in (None, owner):
                if rule.last_owner() is not owner:
                    self._reset(rule)
                self._refuse_rivals(rule, owner)
                rule.owner, rule.last_owner = owner, weakref.ref(owner)
                return rule, False
        rule = make()
        self._refuse_rivals(rule, owner)
        rule.signature, rule.owner, rule.last_owner = signature, owner, weakref.ref(owner)
        self._built = rule
        rule.build(self)
        self.rules = sorted([*self.rules, rule], key=lambda rule: rule.order)
        return rule, True

    def _release_leftovers(self, owner):
        """Rules of a `fit` that raised: all callbacks of one have the same dict of parameters."""
        for rule in self.rules:
            if rule.owner is not None and rule.owner.params is not owner.params:
                rule.owner.release()
                rule.release()  # whatever model the callback has now
                rule.owner = None

    def _refuse_rivals(self, rule, owner):
        for other in self.rules:
            is_rival = other.sets is not None and other.sets == rule.sets
            if is_rival and other is not rule and other.owner not in (None, owner):
                names = f"{type(other.owner).__name__} and {type(owner).__name__}"
                for each in self.rules:  # this fit ends here
                    if each.owner is not None:
                        each.owner.release()
                raise ValueError(
                    f"Two callbacks of a fit must not set the same number: number={rule.sets!r}, "
                    f"callbacks={names}"
                )

    def _reset(self, rule):
        """Give the variables of a rule the values that they had when it was new."""
        for variable, value, of in self._own.values():
            if of is rule:
                variable.assign(ops.full(variable.shape, value, variable.dtype))

    def rule_of(self, owner):
        """The rule that a callback uses now, or None."""
        return next((rule for rule in self.rules if rule.owner is owner), None)

    def add_variable(self, shape, name, *, dtype="float32", value=0.0, stays=False):
        """A variable of the optimizer that its saved state leaves out; for `Rule.build`.

        `stays`: when a training is set back, as it says what has happened, or is set by the host.
        """
        variable = self.optimizer.add_variable(
            shape, keras.initializers.Constant(value), dtype, name=name
        )
        self._own[id(variable)] = (variable, value, self._built)
        if stays:
            self._staying.add(id(variable))
        return variable

    def state(self):
        """Variables of the optimizer and of rules that a training depends on."""
        return [v for v in self.optimizer.variables if id(v) not in self._staying]

    def hide_variables(self, optimizer):
        """Save and load an optimizer as if rules had no variables."""
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
        """An optimizer's variables without those of rules."""
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
                rule.gradients(update)
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
            with _attributes(self.optimizer, update.numbers), _multiplied(update):
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
            rule.after(update)

    def _reset_accumulators(self):
        """As Keras means it: on PyTorch it multiplies by 0, which leaves NaN what is NaN."""
        for variable in self.optimizer._accumulated_gradients:
            if variable is not None:
                variable.assign(ops.zeros(variable.shape, variable.dtype))

    def _count_back(self, is_good):
        """Keras will count this step: a step that is left out is not one of `iterations`."""
        counter = self.optimizer._iterations
        steps = self.optimizer.gradient_accumulation_steps or 1
        now = ops.convert_to_tensor(counter)
        counter.assign(ops.where(is_good, now, now - ops.cast(steps, now.dtype)))


def number(variable):
    """Of a scalar variable, also of one that has a copy on each of several devices."""
    return ops.convert_to_numpy(ops.convert_to_tensor(variable)).item()


def hook_of(model):
    """The hook of a model's optimizer, which it makes if there is none yet.

    Args:
        model: A compiled model that has been built. The optimizer is built, too, if it was not.

    Raises:
        ValueError: If the model has no optimizer, several, or no weights yet.
    """
    outer = getattr(model, "optimizer", None)
    if outer is None:
        raise ValueError(
            f"The model must be compiled with an optimizer: model={model.name!r}, optimizer=None"
        )
    optimizer, chain = outer, [outer]
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
        chain.append(optimizer)
    if hasattr(optimizer, "optimizers"):
        raise ValueError(
            "Callbacks that act in the update need one optimizer, which sees all gradients: "
            f"optimizer={type(optimizer).__name__}"
        )
    if not outer.built:
        if not model.built:
            raise ValueError(
                "The model must be built before fit: give it an Input, or call it on a batch: "
                f"model={model.name!r}, built=False"
            )
        outer.build(model.trainable_variables)
    hook = vars(optimizer).get("_kattn_hook")
    if hook is None:
        hook = OptimizerHook(optimizer)
        object.__setattr__(optimizer, "_kattn_hook", hook)
    for each in chain:
        hook.hide_variables(each)
    return hook


class RuleCallback(keras.callbacks.Callback):
    """A callback that acts in the update by one rule.

    Subclasses define `signature`, what the rule's trace depends on; `make_rule`; `begin`, called on
    the host when training begins; and `tend`, called then, at least every `tend_every` updates, and
    at the end of an epoch, to read and write the rule's variables.
    """

    tend_every: int | None = None  # None: `tend` is called at the ends of epochs alone
    _until_tended = 0

    def signature(self):
        """Hashable or comparable: equal ones are traced alike."""
        raise NotImplementedError

    def make_rule(self):
        """A rule."""
        raise NotImplementedError

    def begin(self, rule):
        """Make the rule act, when training begins."""

    def tend(self, rule):
        """Read and write what the rule keeps."""

    @property
    def rule(self):
        """The rule in use, or None outside of `fit`. Brings JAX's variables up to date."""
        if self._model is None or getattr(self.model, "optimizer", None) is None:
            return None
        return hook_of(self.model).rule_of(self)

    def on_train_begin(self, logs=None):
        hook = hook_of(self.model)
        rule, is_new = hook.use(self, self.signature(), self.make_rule)
        if rule.sees_gradients:
            _refuse_replicas(self.model, type(self).__name__)
        if is_new:
            # A fault in a rule would leave JAX's model without its weights: find it before.
            backend.dry_run(self.model.optimizer)
            self.model.make_train_function(force=True)
        self._steps = getattr(self.model, "steps_per_execution", 1)
        self.begin(rule)
        self._tend(rule)

    def on_train_batch_begin(self, batch, logs=None):
        # Not at the end of a batch, which would keep Keras from running ahead of the device.
        if self.tend_every is not None:
            if self._until_tended < self._steps:
                self._tend(self.rule)
            self._until_tended -= self._steps

    def on_epoch_end(self, epoch, logs=None):
        self._tend(self.rule)

    def on_train_end(self, logs=None):
        self.release()

    def release(self):
        """Leave the optimizer alone from now on: for the end of a `fit` that raised.

        Keras calls no callback then. The next `fit` with any callback of kattn does this, too.
        """
        rule = self.rule
        if rule is not None:
            rule.release()
            rule.owner = None

    def _tend(self, rule):
        self.tend(rule)
        self._until_tended = self.tend_every or 0


def _refuse_replicas(model, name):
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas > 1:
        raise ValueError(
            f"{name} needs the gradient of the whole batch, and under tf.distribute an optimizer "
            f"sees that of a replica: num_replicas_in_sync={replicas}"
        )


@contextlib.contextmanager
def _multiplied(update):
    """Multiply the changes made in the block: that of a gradient would mean nothing to Adam."""
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


@contextlib.contextmanager
def _attributes(optimizer, numbers):
    """Attributes of an optimizer for the length of a block."""
    names = [name for name in numbers if name in vars(optimizer)]
    before = {name: getattr(optimizer, name) for name in names}
    try:
        for name in before:
            value = backend.attribute(numbers[name])
            if name == "momentum":  # Keras asks in Python whether there is any
                value = _Nonzero(value) if ops.is_tensor(value) else _NonzeroFloat(value)
            object.__setattr__(optimizer, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(optimizer, name, value)


class _NonzeroFloat(float):
    """A number that does not say that it is 0, so that the velocity is computed all the same."""

    def __ne__(self, other):
        return True

    def __gt__(self, other):
        return True

    __hash__ = float.__hash__


class _Nonzero:
    """A traced number that Python may compare with 0, and frameworks read as a tensor."""

    def __init__(self, value):
        self._value = value
        self.dtype = value.dtype
        self.shape = value.shape

    def __jax_array__(self):
        return self._value

    def __tf_tensor__(self, dtype=None, name=None):
        return self._value if dtype is None else ops.cast(self._value, dtype)

    def __ne__(self, other):
        return True

    def __gt__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]
