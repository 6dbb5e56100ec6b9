"""The battery finds what it is there to find: each check fails on a layer with one fault."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.layers import SelfAttention
from tests import checks

WINDOW = 2


def fault(cls):
    return keras.saving.register_keras_serializable("tests")(cls)


@fault
class DropsAField(SelfAttention):
    def get_config(self):
        config = super().get_config()
        del config["window"]
        return config


@fault
class ForgetsAField(SelfAttention):
    def get_config(self):
        return {**super().get_config(), "softcap": None}


@fault
class DropsThePolicy(SelfAttention):
    def build(self, x_shape):
        super().build(x_shape)
        self._output.dtype_policy = "float32"


@fault
class Overflows(SelfAttention):
    def call(self, x, mask=None, training=None):
        y = super().call(x, mask=mask, training=training)
        return y * 6e4 * 6e4 / 6e4 / 6e4


@fault
class HasAnIdleWeight(SelfAttention):
    def build(self, x_shape):
        super().build(x_shape)
        self.idle = self.add_weight(shape=(1,), name="idle")

    def call(self, x, mask=None, training=None):
        return super().call(x, mask=mask, training=training) + 0.0 * self.idle


@fault
class IsDrawnAnew(SelfAttention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shift = float(np.random.default_rng().normal())

    def call(self, x, mask=None, training=None):
        return super().call(x, mask=mask, training=training) + self.shift


@fault
class CountsItsCalls(SelfAttention):
    count = 0

    def call(self, x, mask=None, training=None):
        self.count += 1
        return super().call(x, mask=mask, training=training) + self.count


@fault
class NeverDrops(SelfAttention):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask=mask, training=False)


@fault
class AlwaysDrops(SelfAttention):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask=mask, training=True)


@fault
class KnowsItsLength(SelfAttention):
    def build(self, x_shape):
        super().build(x_shape)
        self.table = self.add_weight(shape=(x_shape[1] or 5, x_shape[2]), name="table")

    def call(self, x, mask=None, training=None):
        return super().call(x, mask=mask, training=training) + self.table


@fault
class IgnoresMasks(SelfAttention):
    def call(self, x, mask=None, training=None):
        return super().call(x, training=training)


@fault
class InvertsMasks(SelfAttention):
    def call(self, x, mask=None, training=None):
        mask = None if mask is None else ops.logical_not(mask)
        return super().call(x, mask=mask, training=training)


@fault
class LetsOneMaskReplaceTheOther(SelfAttention):
    def call(self, x, mask=None, training=None):
        x = x if mask is None else ops.copy(x)  # which Keras keeps no mask for
        return super().call(x, mask=mask, training=training)


@fault
class LosesTheMask(SelfAttention):
    def compute_mask(self, x, previous_mask):
        return None


@fault
class SeesOneAhead(SelfAttention):
    def call(self, x, mask=None, training=None):
        return super().call(ops.roll(x, -1, axis=1), mask=mask, training=training)


@fault
class MissesItself(SelfAttention):
    def call(self, x, mask=None, training=None):
        return super().call(ops.roll(x, 1, axis=1), mask=mask, training=training)


@fault
class SeesTooFar(SelfAttention):
    def build(self, x_shape):
        super().build(x_shape)
        self._pattern = masks.Causal() & masks.Window(WINDOW + 1)


@fault
class SeesTooLittle(SelfAttention):
    def build(self, x_shape):
        super().build(x_shape)
        self._pattern = masks.Causal() & masks.Window(WINDOW - 1)


FAULTS = {
    "a field missing in the config": (DropsAField, checks.check_config, "lacks 'window'"),
    "a field wrong in the config": (ForgetsAField, checks.check_config, "Not equal|Mismatch|error"),
    "a sub-layer without the policy": (DropsThePolicy, checks.check_sublayers, "dtype policy"),
    "overflow in half precision": (Overflows, checks.check_precision, "not finite"),
    "a weight without gradient": (HasAnIdleWeight, checks.check_training, "idle did not move"),
    "state that is not saved": (IsDrawnAnew, checks.check_saving, "error"),
    "state that compilation loses": (CountsItsCalls, checks.check_compiled, "error"),
    "no dropout": (NeverDrops, checks.check_dropout, "not applied in training"),
    "dropout at inference": (AlwaysDrops, checks.check_dropout, "Arrays are not equal"),
    "masks without effect": (IgnoresMasks, checks.check_masks, "the mask has no effect"),
    "masks inverted": (InvertsMasks, checks.check_padding, "error"),
    "one mask instead of both": (LetsOneMaskReplaceTheOther, checks.check_masks, "error"),
    "no mask on the output": (LosesTheMask, checks.check_masks, "the output has no mask"),
    "one step ahead": (SeesOneAhead, checks.check_future, "not seen|error"),
    "not its own step": (MissesItself, checks.check_future, "error|not seen"),
    "a window too wide": (SeesTooFar, "window", "seen too far"),
    "a window too narrow": (SeesTooLittle, "window", "not seen far enough"),
}


def make(cls, **options):
    return cls(2, causal=True, window=WINDOW, softcap=2.0, dropout=0.3, seed=1, **options)


def inputs(rng):
    return [rng.normal(size=(3, 5, 8)).astype("float32")]


@pytest.mark.parametrize("name", FAULTS)
def test_finds(rng, name):
    cls, check, message = FAULTS[name]
    if check == "window":
        check = functools.partial(checks.check_window, window=WINDOW)
    x = inputs(rng)
    check(functools.partial(make, SelfAttention), x)
    with pytest.raises(AssertionError, match=f"(?is){message}"):
        check(functools.partial(make, cls), x)


def test_finds_a_length_baked_in(rng):
    """What is raised is the framework's own error."""
    with pytest.raises(Exception, match=r"(?is)incompatible|broadcast|must match|shape"):
        checks.check_unknown_sizes(functools.partial(make, KnowsItsLength), inputs(rng))


def test_finds_positions_where_none_should_be(rng):
    x = inputs(rng)
    checks.check_permutation(lambda: SelfAttention(2), x)
    with pytest.raises(AssertionError):
        checks.check_permutation(lambda: SelfAttention(2, causal=True), x)


def test_finds_a_stale_fixture(monkeypatch, rng, tmp_path):
    monkeypatch.setattr(checks, "FIXTURES", tmp_path)
    monkeypatch.setattr(checks, "BACKENDS", (keras.backend.backend(),))
    layer = functools.partial(make, SelfAttention)
    checks.write_fixture(layer, inputs(rng), "toy")
    checks.check_fixture(layer, "toy")
    with pytest.raises(AssertionError, match="stale"):
        checks.check_fixture(functools.partial(layer, use_qk_norm=True), "toy")
    stored = dict(np.load(tmp_path / f"toy-{keras.backend.backend()}.npz"))
    stored["output"] = stored["output"] + 0.01
    np.savez(tmp_path / f"toy-{keras.backend.backend()}.npz", **stored)
    with pytest.raises(AssertionError, match="error"):
        checks.check_fixture(layer, "toy")
    with pytest.raises(AssertionError, match="is missing"):
        checks.check_fixture(layer, "other")
