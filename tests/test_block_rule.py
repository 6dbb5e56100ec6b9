"""What masks and biases inherit: for every one that is exported, and for rules written here."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest

from kattn import biases, masks
from kattn.block_rule import BlockRule, registered_rule
from kattn.ops import masking
from tests.compute import run

KEEP = np.array([[True, True, False], [True, False, False]])
TABLE = np.arange(6, dtype="float32").reshape(2, 3)
TENSOR = keras.ops.convert_to_tensor

# An instance of every exported rule, with arrays where it takes any.
MAKE = {
    "masks.Causal": lambda: masks.Causal(),
    "masks.Window": lambda: masks.Window(3),
    "masks.Dilated": lambda: masks.Dilated(3, 2),
    "masks.Neighborhood": lambda: masks.Neighborhood(
        (1, 2), (1, 2), (False, True), clamped=False, sides=(1, 3)
    ),
    "masks.Prefix": lambda: masks.Prefix(np.array([2, 1])),
    "masks.Global": lambda: masks.Global([2, 0]),
    "masks.Segments": lambda: masks.Segments(np.array([[0, 0, 1], [2, 2, 2]])),
    "masks.Padding": lambda: masks.Padding(KEEP),
    "masks.Dense": lambda: masks.Dense(KEEP),
    "masks.And": lambda: masks.And(masks.Padding(KEEP), masks.Causal()),
    "masks.Or": lambda: masks.Or(masks.Prefix(2), masks.Dense(KEEP)),
    "masks.Not": lambda: masks.Not(masks.Padding(KEEP)),
    "biases.Sum": lambda: biases.Sum(biases.ALiBi([0.5, 0.25]), biases.Clipped(TENSOR(TABLE))),
    "biases.Dense": lambda: biases.Dense(TABLE),
    "biases.ALiBi": lambda: biases.ALiBi(TENSOR(TABLE[:, 0])),
    "biases.Clipped": lambda: biases.Clipped(TENSOR(TABLE)),
    "biases.T5": lambda: biases.T5(TENSOR(TABLE), max_distance=5, bidirectional=False),
    "biases.GridTable": lambda: biases.GridTable(
        TENSOR(TABLE), sides=(1, 2), axes=(1,), key_stride=2, window=(1, 2), dilation=(1, 2)
    ),
}
NUMBER_OF_ARRAYS = {
    **dict.fromkeys(MAKE, 1),
    **dict.fromkeys(
        ["masks.Causal", "masks.Window", "masks.Dilated", "masks.Neighborhood", "masks.Global"],
        0,
    ),
}
# Registered names, by which saved files find the classes.
REGISTERED = {
    name: name.replace("masks.", "kattn>").replace("biases.", "kattn.biases>") for name in MAKE
} | {"biases.GridTable": "kattn.biases>Grid"}


def exported():
    """All rules that `kattn.masks` and `kattn.biases` export, but for the two base classes."""
    return {
        f"{space.__name__.removeprefix('kattn.')}.{name}"
        for space in (masks, biases)
        for name, value in vars(space).items()
        if inspect.isclass(value) and value not in (masks.Mask, biases.Bias)
    }


def test_every_export_is_tested():
    assert set(MAKE) == exported()


@pytest.fixture(params=MAKE)
def name(request):
    return request.param


def altered(rule):
    """Rules of the same class that differ from `rule` in one field."""
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if isinstance(value, BlockRule):
            values = [*altered(value), masks.Window(9)]
        elif hasattr(value, "shape"):
            array = run(lambda value=value: value).copy()
            array.flat[-1] = not array.flat[-1] if array.dtype == bool else array.flat[-1] + 1
            values = [array, array[..., :1], None]
        elif isinstance(value, bool):
            values = [not value]
        else:
            values = [(*value, 1) if isinstance(value, tuple) else value + 1]
        for other in values:
            fields = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}
            yield type(rule).unchecked(**{**fields, field.name: other})


def test_equal_fields_are_equal_rules(name):
    rule, again = MAKE[name](), MAKE[name]()
    assert rule == again
    assert not rule != again  # noqa: SIM202  both operators are looked at
    others = list(altered(rule))
    assert others or name == "masks.Causal"
    for other in others:
        assert rule != other
        assert other != rule
    assert all(rule != make() for other, make in MAKE.items() if other != name)
    assert rule != "a string"


def test_rules_without_arrays_are_keys(name):
    rule, again = (masking.without_arrays(MAKE[name]()) for _ in range(2))
    assert {rule: "a"}[again] == "a"
    if not NUMBER_OF_ARRAYS[name]:
        assert not {rule} & set(altered(rule))
        return
    with pytest.raises(TypeError, match="A rule that holds arrays cannot be hashed"):
        hash(MAKE[name]())


def test_arrays_are_mapped(name):
    rule, seen = MAKE[name](), []

    def negative(array):
        seen.append(array)
        return ~array if array.dtype == bool else -array

    in_numpy = rule.map_arrays(keras.ops.convert_to_numpy)
    mapped = in_numpy.map_arrays(negative)
    assert len(seen) == NUMBER_OF_ARRAYS[name]
    assert type(mapped) is type(rule)
    assert (mapped == rule) == (not seen)
    assert mapped.map_arrays(negative) == in_numpy == rule
    arrays = masking.arrays_of(rule)
    assert masking.with_arrays(masking.without_arrays(rule), arrays) == rule


@pytest.mark.parametrize("is_without", [False, True], ids=["with arrays", "without"])
def test_configs_make_equal_rules(name, is_without):
    rule = MAKE[name]()
    rule = masking.without_arrays(rule) if is_without else rule
    config = keras.saving.serialize_keras_object(rule)
    assert config["registered_name"] == REGISTERED[name]
    again = keras.saving.deserialize_keras_object(config)
    assert again == rule
    assert type(rule).from_config(rule.get_config()) == rule
    for field in dataclasses.fields(rule):
        assert type(getattr(again, field.name)) is type(getattr(rule, field.name))


def test_fields_cannot_be_changed(name):
    rule = MAKE[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.other = 1


def test_configs_are_checked_like_arguments():
    config = masks.Window(3).get_config()
    with pytest.raises(ValueError, match="`size` must be an integer >= 1; received: size=0"):
        masks.Window.from_config({**config, "size": 0})


def test_symbolic_arrays_are_equal_only_to_themselves():
    node, other = (keras.KerasTensor((None, 3), dtype="bool") for _ in range(2))
    assert masks.Padding(node) == masks.Padding(node)
    assert masks.Padding(node) != masks.Padding(other)
    assert masks.Padding(node) != masks.Padding(KEEP)
    assert masks.Padding(node) != masking.without_arrays(masks.Padding(node))


def test_numbers_are_no_arrays():
    assert masks.Prefix(2) != masks.Prefix(np.array([2]))
    assert masks.Prefix(2) == masks.Prefix(2)
    assert masking.arrays_of(masks.Prefix(2)) == []
    assert masking.arrays_of(biases.ALiBi([0.5])) == []
    assert hash(biases.ALiBi([0.5])) == hash(biases.ALiBi((0.5,)))


@dataclasses.dataclass(frozen=True)
class Plain(masks.Mask):
    """A rule with the decorator of the standard library, whose `==` fails for arrays."""

    keys: object

    array_fields = ("keys",)


def test_a_plain_dataclass_compares_arrays_too():
    assert Plain(KEEP) == Plain(KEEP.copy())
    assert Plain(KEEP) != Plain(~KEEP)
    assert hash(Plain(None)) == hash(Plain(None))
    with pytest.raises(TypeError, match=r"A rule that holds arrays cannot be hashed.*Plain"):
        hash(Plain(KEEP))


def test_one_may_compare_in_a_way_of_ones_own():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Alike(masks.Mask):
        size: int

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 1

    assert Alike(2) == Alike(3)
    assert hash(Alike(2)) == 1


def test_a_renamed_rule_keeps_its_registered_name():
    @registered_rule("tests", name="OldName")
    class NewName(masks.Mask):
        size: int

    config = keras.saving.serialize_keras_object(NewName(4))
    assert config["registered_name"] == "tests>OldName"
    assert keras.saving.deserialize_keras_object(config) == NewName(4)


def test_rules_of_rules():
    mask = masks.Causal() & masks.Padding(KEEP)
    assert mask.rules() == [masks.Causal(), masks.Padding(KEEP)]
    assert mask.map_rules(lambda rule: ~rule) == ~masks.Causal() & ~masks.Padding(KEEP)
    assert masks.Window(2).map_rules(lambda rule: ~rule) == masks.Window(2)
    assert masks.Window(2).rules() == []
