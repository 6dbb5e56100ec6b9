"""What masks and biases have in common: rules that give any block of the scores.

A rule is a frozen dataclass. Its fields are numbers, tuples of numbers, other rules, and arrays;
the class names the fields that may hold an array in `array_fields`. All else follows from the
fields: the config, equality, and taking the arrays out and putting them back.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from kattn.arguments import error
from kattn.spans import Span


@typing.dataclass_transform(frozen_default=True, eq_default=False)
def registered_rule(package, name=None):
    """Decorator that makes a class a frozen dataclass and registers it with Keras.

    Args:
        package: Package of the registered name, as in "kattn>Causal".
        name: Registered name; None for the name of the class. A class that is renamed keeps the
            name under which files were saved.

    Returns:
        The decorator, for a subclass of `BlockRule`.

    Example:
        >>> @kattn.block_rule.registered_rule("my_package")
        ... class EveryNth(kattn.masks.Mask):
        ...     n: int
        ...
        ...     def block(self, queries, keys, offset=0):
        ...         return keys.along(-1) % self.n == 0
        >>> EveryNth(2)[0:3, 0:3]
        [[[[True, False, True]]]]
    """

    def decorate(cls):
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        return keras.saving.register_keras_serializable(package, name)(cls)

    return decorate


@dataclasses.dataclass(frozen=True, eq=False)
class BlockRule:
    """A rule over positions, which can give any block of a matrix of scores.

    `rule[q0:q1, k0:k1]` is the block for these queries and keys of two sequences of equal length.

    Two rules are equal if they are of the same class and their fields are equal. Arrays are equal
    if their shapes and values are; symbolic tensors and None only if they are the same object.
    (Values that a compiler traces cannot be compared; the framework raises an error.) A rule
    without arrays can be the key of a dict.

    A new rule is a subclass, decorated with `registered_rule`, that defines `block` and names in
    `array_fields` the fields that may hold an array. A number, a tuple or None in such a field is
    no array: None is the place of an array that was taken out. No field may be keyword-only.
    """

    array_fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # A plain `dataclass` would write its own, which fail for arrays, into a class without.
        for name in ("__eq__", "__hash__"):
            if name not in cls.__dict__ or cls.__dict__[name] is None:
                setattr(cls, name, getattr(BlockRule, name))

    def __getitem__(self, block):
        rows, columns = _spans(block)
        return self.at(rows).block(rows, columns)

    def block(self, queries, keys, offset=0):
        """The rule for some queries and some keys.

        Args:
            queries: `Span` or `Places`, the rows of the block. A rule with numbers of each
                query's own must hold those of just these queries; `at(queries)` selects them.
            keys: `Span` or `Places`, the columns of the block.
            offset: S - T, the position of query 0 on the key axis: an integer or a scalar tensor.

        Returns:
            A tensor that broadcasts to `(B, N, queries, keys)`, with a leading axis for several
            runs (a `Span` whose start is a vector).
        """
        raise NotImplementedError

    def at(self, queries):
        """The same rule, which holds the numbers of these queries only.

        It changes only biases with numbers of each query's own, `(B, N, T, numbers)`.

        Args:
            queries: `Span` or `Places`, the queries to keep.

        Returns:
            A rule of the same class.
        """
        return self.map_rules(lambda rule: rule.at(queries))

    @property
    def holds_scores(self) -> bool:
        """Whether the rule holds an array with both an axis of queries and an axis of keys."""
        return any(rule.holds_scores for rule in self.rules())

    def padded(self, queries, keys):
        """The same rule for longer sequences; what it says of the added steps does not matter.

        Args:
            queries: Number of queries to add behind the last, an integer or a scalar tensor.
            keys: Number of keys to add behind the last, likewise.

        Returns:
            A rule of the same class.
        """
        return self.map_rules(lambda rule: rule.padded(queries, keys))

    def check(self, batch, heads, queries, keys) -> None:
        """Checks that the arrays of the rule fit scores of shape `(B, N, T, S)`.

        Args:
            batch: B, or None if it is not known.
            heads: N, or None if it is not known.
            queries: T, or None if it is not known.
            keys: S, or None if it is not known.

        Raises:
            ValueError: If an array does not fit.
        """
        for rule in self.rules():
            rule.check(batch, heads, queries, keys)

    def rules(self) -> list["BlockRule"]:
        """The rules that this one is made of directly."""
        return [value for value in _fields(self).values() if isinstance(value, BlockRule)]

    def map_rules(self, function: Callable[[Any], Any]):
        """The same rule with a function applied to each rule that it is made of directly.

        Args:
            function: Function of a rule that returns a rule.

        Returns:
            A rule of the same class.
        """
        fields = _fields(self)
        changes = {name: function(x) for name, x in fields.items() if isinstance(x, BlockRule)}
        return self.unchecked(**{**fields, **changes}) if changes else self

    def map_arrays(self, function: Callable[[Any], Any]):
        """The same rule with a function applied to each array that it holds.

        Args:
            function: Function of an array, or of None where an array was taken out. The arrays
                come in the order of the fields.

        Returns:
            A rule of the same class, whose arrays are not checked; this rule itself if the
            function changes nothing.
        """
        fields, is_changed = {}, False
        for name, old in _fields(self).items():
            new = old
            if isinstance(old, BlockRule):
                new = old.map_arrays(function)
            elif name in self.array_fields and not isinstance(old, NUMBERS):
                new = function(old)
            fields[name] = new
            is_changed = is_changed or new is not old
        return self.unchecked(**fields) if is_changed else self

    @classmethod
    def unchecked(cls, **fields):
        """A rule made without the checks of its constructor.

        Args:
            **fields: All fields of the class: values that passed the checks before, or None in
                place of an array.

        Returns:
            A rule of this class.
        """
        rule = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(rule, name, value)
        return rule

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            name: serialize(value) if isinstance(value, BlockRule) else value
            for name, value in _fields(self).items()
        }

    @classmethod
    def from_config(cls, config):
        fields = {name: _read(value) for name, value in config.items()}
        if any(fields[name] is None for name in cls.array_fields):
            return cls.unchecked(**fields)
        return cls(**fields)

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return all(map(_are_equal, _values(self), _values(other)))

    def __hash__(self):
        for name in self.array_fields:
            value = getattr(self, name)
            if value is not None and not isinstance(value, NUMBERS):
                raise TypeError(
                    f"A rule that holds arrays cannot be hashed; received: {type(self).__name__}. "
                    "Take its arrays out first, by map_arrays(lambda array: None)."
                )
        return hash((type(self), *_values(self)))


# Compiled kernels look rules up at each call, and `dataclasses.fields` takes longer.


def _fields(rule):
    return {name: getattr(rule, name) for name in rule.__match_args__}


def _values(rule):
    return [getattr(rule, name) for name in rule.__match_args__]


def _spans(block):
    parts: Any = block if isinstance(block, tuple) and len(block) == 2 else (block, None)
    for part in parts:
        if not isinstance(part, slice) or part.stop is None or part.step not in (None, 1):
            rule = "A block is [q0:q1, k0:k1], two slices that have an end and no step"
            raise error(rule, queries=parts[0], keys=parts[1])
    return [Span(part.start or 0, part.stop - (part.start or 0)) for part in parts]


def _read(value):
    """What a config holds for a field: lists, which JSON makes of tuples, become tuples again."""
    if isinstance(value, dict):
        return keras.saving.deserialize_keras_object(value)
    return tuple(map(_read, value)) if isinstance(value, list | tuple) else value


def _are_equal(left, right):
    if left is right:
        return True
    if isinstance(left, PLAIN) or isinstance(right, PLAIN):
        return isinstance(left, PLAIN) and isinstance(right, PLAIN) and left == right
    if any(x is None or isinstance(x, keras.KerasTensor) for x in (left, right)):
        return False
    if tuple(left.shape) != tuple(right.shape):
        return False
    return np.array_equal(ops.convert_to_numpy(left), ops.convert_to_numpy(right))


# What a field holds that is no array, and what is compared by `==`.
NUMBERS = (int, float, tuple)
PLAIN = (*NUMBERS, str, BlockRule)
