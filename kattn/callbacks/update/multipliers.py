"""What `LayerwiseLearningRates` and `GradualUnfreezing` do in each update."""

from kattn.callbacks.update.rule import Rule


class Multipliers(Rule):
    """Multiplies the changes of weights by factors that may be changed during training.

    Args:
        factors: The first factors, a dict by the ids of weights. Other weights have no factor.
    """

    def __init__(self, factors):
        self.factors = factors
        self._places = {weight: i for i, weight in enumerate(factors)}

    def build(self, hook):
        shape = (max(len(self.factors), 1),)
        self._values = hook.add_variable(shape, "multipliers", value=1.0, stays=True)

    def set(self, factors):
        """Set the factors, a list in the order of the weights, on the host."""
        self._values.assign(factors or [1.0])

    def multiplier(self, variable):
        place = self._places.get(id(variable))
        return None if place is None else self._values[place]

    def release(self):
        self.set([1.0] * len(self.factors))
