"""A learning rate for each layer, by its depth or by the path of its weights."""

from kattn.callbacks.optimizer_hook import Rule, RuleCallback
from kattn.callbacks.weight_groups import check_matches, check_patterns, depths, group_of


class LayerwiseLearningRates(RuleCallback):
    """Change of a weight = multiplier * the optimizer's, weight decay included.

    The change is scaled and not the gradient, whose size means nothing to Adam. The optimizer's
    moments are those of all gradients, so a multiplier that is raised later finds them warm.

    Args:
        multipliers: Patterns (regular expressions, searched for in a weight's path) and the factor
            of the weights that match, 0 or more. The first match counts.
        decay: Weights that match no pattern have decay^d, where d counts the layers between theirs
            and the last: in (0, 1]. Layers are those of the model that have trainable weights, as
            the model lists them, those of models in it one by one. 1: no decay.

    Raises:
        ValueError: If an argument is out of its range, or there is none. When training begins, if a
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

    def __init__(self, multipliers=None, *, decay=1.0):
        super().__init__()
        self.multipliers = dict(multipliers or {})
        self.decay = decay
        if not self.multipliers and decay == 1.0:
            raise ValueError("There must be multipliers or a decay: multipliers=None, decay=1.0")
        check_patterns("multipliers", self.multipliers)
        for pattern, value in self.multipliers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(
                    f"multipliers must be 0 or more: multipliers[{pattern!r}]={value!r}"
                )
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1]: decay={decay!r}")

    def multiplier(self, variable):
        """Of a trainable weight of the model, once training has begun."""
        group = group_of(variable.path, self.multipliers)
        if group is not None:
            return float(list(self.multipliers.values())[group])
        return float(self.decay ** self._depths.get(variable.path, 0))

    def signature(self):
        found = {v.path: self.multiplier(v) for v in self.model.trainable_variables}
        return ("multipliers", {path: value for path, value in found.items() if value != 1.0})

    def make_rule(self):
        return Multipliers(self.signature()[1])

    def on_train_begin(self, logs=None):
        check_matches("multipliers", self.multipliers, self.model)
        self._depths = depths(self.model)
        super().on_train_begin(logs)

    def begin(self, rule):
        rule.set(list(rule.first.values()))


class Multipliers(Rule):
    """Factors of weights by their paths, which may be changed in the course of a training."""

    def __init__(self, first):
        self.first = first
        self._places = {path: i for i, path in enumerate(first)}

    def build(self, hook):
        self._values = hook.add_variable(
            (max(len(self.first), 1),), "multipliers", value=1.0, stays=True
        )

    def set(self, values):
        """On the host: one factor for each path."""
        self._values.assign(values or [1.0])

    def multiplier(self, variable):
        place = self._places.get(variable.path)
        return None if place is None else self._values[place]

    def release(self):
        self.set([1.0] * len(self.first))
