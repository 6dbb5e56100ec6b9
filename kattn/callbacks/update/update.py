"""One update of the weights, as rules see it."""

import functools

from keras import ops

from kattn import backend


class Update:
    """One update of the weights, while it is computed.

    Args:
        optimizer: The optimizer that changes the weights; not one that scales its loss.
        variables: The Keras variables that are updated.
        rules: The rules of the optimizer, in their order.
        own_rate: Function without arguments that returns the learning rate of the optimizer.

    Attributes:
        optimizer: As the argument.
        variables: List of the variables that are updated.
        gradients: List of gradients, one for each variable: dense, unscaled, and averaged over
            accumulated steps.
        numbers: What rules have set so far: numbers by the name of the optimizer's attribute.
        is_good: Whether to update the weights at all, bool tensor; None means yes.
        before: Weights before the update, if a rule reads changes.
        clipped_norm: Norm of all gradients together after a rule that clips; None if none has.
        decays: Whether the optimizer has asked for its weight decay.
    """

    def __init__(self, optimizer, variables, rules, own_rate):
        self.optimizer = optimizer
        self.variables = list(variables)
        self.rules = rules
        self.gradients = []
        self.numbers = {}
        self.is_good = None
        self.before = []
        self.clipped_norm = None
        self.decays = False
        self._own_rate = own_rate
        self._norms = None
        self._is_finite = None

    @property
    def step(self):
        """How many updates were made before this one, int32."""
        return ops.cast(ops.convert_to_tensor(self.optimizer.iterations), "int32")

    def number(self, name):
        """Return a number of the optimizer as rules have set it so far, float32.

        If no rule has set it, it is the optimizer's own number; -1 if the optimizer has none of
        that name.
        """
        if name in self.numbers:
            value = self.numbers[name]
        elif name == "learning_rate":
            value = self._own_rate()
        else:
            value = float(getattr(self.optimizer, name, -1.0))
        return ops.cast(ops.convert_to_tensor(value), "float32")

    def norms(self):
        """Return the norm of each gradient before any rule changed it, `(len(variables),)` float32.

        The norm of a weight whose multiplier is 0 counts as 0.
        """
        if self._norms is None:
            norms = backend.norms(self.gradients)
            self._is_finite = ops.isfinite(ops.sum(ops.square(norms)))
            self._norms = self._without_resting(norms, range(len(self.variables)))
        return self._norms

    def norms_of(self, gradients, members):
        """Return the norms of given gradients, float32; `members` are indices of their variables.

        The norm of a weight whose multiplier is 0 counts as 0.
        """
        return self._without_resting(backend.norms(gradients), members)

    def _without_resting(self, norms, members):
        factors = [self.factors[i] for i in members]
        if all(factor is None for factor in factors):
            return norms
        moves = [1.0 if f is None else ops.cast(f != 0, "float32") for f in factors]
        return ops.where(ops.stack(moves) > 0, norms, 0.0)

    def is_finite(self):
        """Return whether the norm of all gradients together is finite, bool.

        Gradients of weights whose multiplier is 0 count here.
        """
        self.norms()
        return self._is_finite

    def changes(self):
        """Return what the update has added to each weight, a list of float32 tensors.

        Only for `Rule.after_update` of a rule that `sees_changes`.
        """
        pairs = zip(self.variables, self.before, strict=True)
        return [ops.cast(v, "float32") - ops.cast(old, "float32") for v, old in pairs]

    @functools.cached_property
    def factors(self):
        """The factor on the change of each variable, float32, or None for 1."""
        return [self._factor(variable) for variable in self.variables]

    def _factor(self, variable):
        product = None
        for rule in self.rules:
            factor = rule.multiplier(variable)
            if factor is not None:
                factor = ops.cast(ops.convert_to_tensor(factor), "float32")
                product = factor if product is None else product * factor
        return product

    def require(self, condition):
        """Update the weights only if this condition is True, besides those required before."""
        if self.is_good is not None:
            condition = ops.logical_and(self.is_good, condition)
        self.is_good = condition
