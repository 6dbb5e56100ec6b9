"""A learning rate for each layer, by its depth or by the paths of its weights."""

from kattn.arguments import check_factors, check_rates, error
from kattn.callbacks.update.multipliers import Multipliers
from kattn.callbacks.update.rule_callback import RuleCallback
from kattn.callbacks.update.weight_groups import check_matches, check_patterns, depths, group_of
from kattn.paths import weight_paths


class LayerwiseLearningRates(RuleCallback):
    """Multiply the change of each weight in an update by a factor of its layer.

    The change is multiplied, weight decay included, and not the gradient, whose size means nothing
    to optimizers such as Adam. The moments of the optimizer are those of all gradients.

    Args:
        multipliers: Dict from a pattern to the factor of the weights that match, >= 0. A pattern is
            a regular expression that is searched for in the paths of weights; the first match
            counts. None for no patterns.
        decay: Weights that match no pattern have the factor decay^d, where d is the number of
            layers between theirs and the last one; in (0, 1]. Layers are those of the model that
            have trainable weights, in the order in which the model lists them; layers of a model
            inside the model count one by one. 1 for no decay.
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Raises:
        ValueError: If an argument is out of range, or neither is given. When training begins, if a
            pattern matches no trainable weight.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1, name="head")]
        ... )
        >>> model.compile("adam", "mse")
        >>> rates = kattn.callbacks.LayerwiseLearningRates({"head/": 10.0}, decay=0.5)
        >>> history = model.fit(np.ones((8, 2)), np.ones((8, 1)), callbacks=[rates], verbose=0)
        >>> [rates.multiplier(weight) for weight in model.weights]
        [0.5, 0.5, 10.0, 10.0]

    Reference:
        Howard & Ruder 2018, sec. 3.2, "discriminative fine-tuning", decay 1 / 2.6,
        https://arxiv.org/abs/1801.06146
        Clark et al. 2020, appendix A, layer-wise decay, https://arxiv.org/abs/2003.10555
    """

    def __init__(self, multipliers=None, *, decay=1.0, optimizer=None):
        super().__init__(optimizer)
        self.multipliers = dict(multipliers or {})
        self.decay = decay
        if not self.multipliers and decay == 1.0:
            raise error(
                "`multipliers` must be given, or `decay` be below 1",
                multipliers=multipliers,
                decay=decay,
            )
        check_patterns("multipliers", self.multipliers)
        check_rates(**{f"multipliers[{name!r}]": x for name, x in self.multipliers.items()})
        check_factors(decay=decay)

    def multiplier(self, variable):
        """Return the factor of a trainable weight, after training has begun."""
        group = group_of(self._paths[id(variable)], self.multipliers)
        if group is not None:
            return float(list(self.multipliers.values())[group])
        return float(self.decay ** self._depths.get(id(variable), 0))

    def signature(self):
        factors = {id(v): self.multiplier(v) for v in self.model.trainable_variables}
        return ("multipliers", {place: value for place, value in factors.items() if value != 1.0})

    def make_rule(self):
        return Multipliers(self.signature()[1])

    def on_train_begin(self, logs=None):
        check_matches("multipliers", self.multipliers, self.model)
        self._depths, self._paths = depths(self.model), weight_paths(self.model)
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.set(list(rule.factors.values()))
