import keras
import numpy as np
import pytest

from kattn import backend, masks
from kattn.ops import Explanation, attention, attention_weights, explain
from kattn.ops.attention import Attention, observed
from kattn.ops.kernels import dense
from tests import oracle
from tests.compute import assert_close, run

CAUSAL, WINDOW = masks.Causal(), masks.Window(3)
KEEP = np.array([[1, 0, 1, 1, 0, 1, 1], [0] * 7], bool)


def inputs(rng, queries=5, keys=7):
    """B=2, N=4, K=2, D=6, Dv=3."""
    sizes = (2, queries, 4, 6), (2, keys, 2, 6), (2, keys, 2, 3)
    return [rng.normal(size=size).astype("float32") for size in sizes]


def test_weights_match_oracle(rng):
    q, k, v = inputs(rng)
    bias, sinks = rng.normal(size=(2, 4, 5, 7)).astype("float32"), rng.normal(size=4)
    keep = np.broadcast_to(oracle.causal(5, 7) & KEEP[:, None, None], bias.shape)
    _, expected = oracle.attention(
        q, k, v, keep=keep, bias=bias, scale=0.7, softcap=1.5, sinks=sinks
    )
    mask = CAUSAL & masks.Padding(KEEP)
    found = run(attention_weights, q, k, mask=mask, bias=bias, scale=0.7, softcap=1.5, sinks=sinks)
    assert_close(found, expected)


def test_arrays_and_objects_mean_the_same(rng):
    q, k, v = inputs(rng)
    array = np.broadcast_to(KEEP[:, None, None], (2, 1, 5, 7))
    assert_close(
        run(attention, q, k, v, mask=array), run(attention, q, k, v, mask=masks.Padding(KEEP))
    )


def test_one_query_sees_the_whole_cache(rng):
    q, k, v = inputs(rng, queries=1)
    assert_close(run(attention, q, k, v, mask=CAUSAL), oracle.attention(q, k, v)[0])


def test_half_precision_comes_back_as_it_went_in(rng):
    q, k, v = (keras.ops.cast(x, "bfloat16") for x in inputs(rng))
    y = attention(q, k, v, mask=CAUSAL, implementation="dense")
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"


def test_functional_model_saves_and_loads(rng, tmp_path):
    q, k, v = inputs(rng)
    nodes = [keras.Input(x.shape[1:]) for x in (q, k, v)]
    keys = keras.Input((7,), dtype="bool")
    y = attention(*nodes, mask=CAUSAL & masks.Padding(keys) & masks.Window(4), softcap=2.0)
    model = keras.Model([*nodes, keys], y)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    keep = np.broadcast_to(
        oracle.causal(5, 7) & oracle.window(5, 7, 4) & KEEP[:, None, None], (2, 4, 5, 7)
    )
    expected, _ = oracle.attention(q, k, v, keep=keep, softcap=2.0)
    assert_close(run(again, [q, k, v, KEEP]), expected)
    assert any(isinstance(node, Attention) for node in again.operations)


def test_functional_model_of_unknown_lengths(rng):
    nodes = [keras.Input((None, *size)) for size in ((4, 6), (2, 6), (2, 3))]
    model = keras.Model(nodes, attention(*nodes, mask=CAUSAL & WINDOW))
    for queries, keys in ((5, 7), (3, 9)):
        arrays = inputs(rng, queries, keys)
        keep = oracle.causal(queries, keys) & oracle.window(queries, keys, 3)
        keep = np.broadcast_to(keep, (2, 4, queries, keys))
        assert_close(model.predict(arrays, verbose=0), oracle.attention(*arrays, keep=keep)[0])


def test_dropout_has_no_place_in_a_functional_model():
    node = keras.Input((5, 4, 6))
    with pytest.raises(ValueError, match=r"Dropout needs to know.*dropout_rate=0\.5"):
        attention(node, node, node, dropout_rate=0.5, seed=1)


ON_GPU = keras.backend.backend() if len(backend.devices()) > 1 else None


class TestExplain:
    def at(self, queries, keys=None, mask=None, width=64, **options):
        shapes = (1, queries, 8, 64), (1, keys or queries, 8, 64), (1, keys or queries, 8, width)
        return explain(*(keras.KerasTensor(s) for s in shapes), mask=mask, **options)

    def test_windows_are_banded(self):
        """On a GPU PyTorch's own kernel is faster until T is long."""
        expected = "fused" if ON_GPU == "torch" else "banded"
        assert self.at(4096, mask=masks.Window(256)).implementation == expected
        assert self.at(4096, mask=CAUSAL & masks.Window(256)).implementation == expected
        assert self.at(16384, mask=masks.Window(256)).implementation == "banded"

    def test_a_window_as_wide_as_the_sequence_is_not(self):
        found = self.at(300, mask=masks.Window(256))
        assert found.implementation != "banded"
        assert "more than half of S=300" in found.passed_over["banded"]

    def test_short_sequences_are_dense_where_no_kernel_is_fused(self):
        expected = "fused" if keras.backend.backend() == "torch" else "dense"
        assert self.at(64).implementation == expected

    def test_long_ones_are_chunked_where_no_kernel_is_fused(self):
        expected = "fused" if keras.backend.backend() == "torch" else "chunked"
        assert self.at(4096, mask=CAUSAL).implementation == expected
        assert self.at(8192, softcap=5.0).implementation == "chunked"

    @pytest.mark.parametrize(
        ("queries", "dropout_rate", "at_once"),
        [(4096, 0.0, {"tensorflow"}), (1024, 0.5, {"tensorflow"}), (8192, 0.5, set())],
    )
    def test_blocks_that_save_no_work_must_be_faster(self, queries, dropout_rate, at_once):
        found = self.at(queries, softcap=5.0, dropout_rate=dropout_rate, seed=1)
        at_once = at_once | ({"jax"} if ON_GPU and queries == 1024 else set())
        is_at_once = keras.backend.backend() in at_once
        assert found.implementation == ("dense" if is_at_once else "chunked")
        assert ("no block can be left out" in found.passed_over.get("chunked", "")) == is_at_once

    def test_dropout_is_no_reason_to_build_the_scores(self):
        seed = keras.random.SeedGenerator(1)
        found = self.at(8192, dropout_rate=0.5, seed=seed)
        if ON_GPU == "torch":
            assert found.implementation == "fused"
        else:
            assert found.implementation == "chunked"

    def test_every_other_kernel_has_a_reason(self):
        found = self.at(16384, mask=CAUSAL & masks.Window(256))  # banded on a GPU, too
        assert isinstance(found, Explanation)
        assert set(found.passed_over) == {"fused", "chunked", "dense"}
        assert all(found.passed_over.values())
        assert str(found).startswith("banded\n  fused passed over: ")

    def test_the_kernel_asked_for_is_taken(self):
        assert self.at(4096, mask=CAUSAL, implementation="dense").implementation == "dense"

    def test_what_is_explained_is_what_runs(self, monkeypatch, rng):
        from kattn.ops.kernels import banded

        called = []
        attend = banded.attend
        monkeypatch.setattr(banded, "attend", lambda call: called.append(1) or attend(call))
        x = rng.normal(size=(1, 600, 1, 2)).astype("float32")
        taken = explain(x, x, x, mask=masks.Window(4)).implementation
        on_cuda = keras.ops.convert_to_tensor(x).device.type == "cuda" if ON_GPU == "torch" else 0
        assert taken == ("fused" if on_cuda else "banded")
        run(attention, x, x, x, mask=masks.Window(4))
        assert bool(called) == (taken == "banded")


BAD = {
    "rank of query": (
        {"query": np.ones((2, 5, 6))},
        r"`query` must have rank 4.*write query\[None\].*shape=\(2, 5, 6\)",
    ),
    "batch": ({"key": np.ones((3, 7, 2, 6))}, r"batch sizes must be equal.*\(3, 7, 2, 6\)"),
    "width": ({"key": np.ones((2, 7, 2, 5))}, r"widths of query and key.*\(2, 7, 2, 5\)"),
    "steps": ({"value": np.ones((2, 6, 2, 3))}, r"steps of key and value.*\(2, 6, 2, 3\)"),
    "heads of value": ({"value": np.ones((2, 7, 1, 3))}, r"heads of key and value"),
    "heads that do not divide": (
        {"key": np.ones((2, 7, 3, 6)), "value": np.ones((2, 7, 3, 3))},
        r"multiple of the number of key heads; received: query_heads=4, key_heads=3",
    ),
    "mask of floats": ({"mask": np.ones((5, 7), "float32")}, "must be boolean.*float32"),
    "mask of rank 3": ({"mask": np.ones((2, 5, 7), bool)}, r"mask\[:, None\].*\(2, 5, 7\)"),
    "mask that does not broadcast": (
        {"mask": np.ones((5, 6), bool)},
        r"`array` of a mask must broadcast.*\(5, 6\)",
    ),
    "padding that does not fit": (
        {"mask": lambda: masks.Padding(np.ones((2, 5), bool))},
        r"`keys` of a mask must broadcast to \(B, S\)=\(2, 7\).*\(2, 5\)",
    ),
    "bias of booleans": ({"bias": np.ones((5, 7), bool)}, "`bias` must be float.*bool"),
    "bias of rank 3": ({"bias": np.ones((4, 5, 7), "float32")}, r"`bias` must have rank 2.*\(4, 5"),
    "bias that does not broadcast": (
        {"bias": np.ones((2, 3, 5, 7), "float32")},
        r"`bias` must broadcast.*\(2, 3, 5, 7\)",
    ),
    "sinks": (
        {"sinks": np.ones(3, "float32")},
        r"`sinks` must have shape \(N,\)=\(4,\).*sinks\.shape=\(3,\)",
    ),
    "dropout": (
        {"dropout_rate": 1.0},
        r"`dropout_rate` must be a fraction in \[0, 1\).*dropout_rate=1\.0",
    ),
    "softcap": ({"softcap": 0.0}, r"`softcap` must be a finite number above 0.*softcap=0\.0"),
    "kernel": (
        {"implementation": "flash"},
        "`implementation` must be one of auto, banded, .*'flash'",
    ),
    "kernel that is a number": ({"implementation": 3}, "`implementation` must be one of auto.*=3"),
    "one kernel of two": (
        {"implementation": ("dense", "flash")},
        "`implementation` must be one of auto, banded, .*'flash'",
    ),
    "kernel for caches": (
        {"implementation": "decode"},
        r"For 'decode' call kattn\.ops\.decode.*implementation='decode'",
    ),
    "kernel that cannot": (
        {"implementation": "banded"},
        r"cannot serve this call \(banded: the mask has no window.*implementation='banded'",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [attention, explain])
def test_bad_input(rng, function, name):
    changes, message = BAD[name]
    arguments = dict(zip(("query", "key", "value"), inputs(rng), strict=True))
    for argument, value in changes.items():
        value = value() if callable(value) else value
        arguments[argument] = value.astype("float32") if argument in arguments else value
    with pytest.raises(ValueError, match=message):
        function(**arguments)


def test_observed_calls(rng):
    """Each that is computed in the block; their largest score, here below 0, that the mask lets."""
    q = rng.uniform(1.0, 2.0, size=(2, 3, 2, 4)).astype("float32")
    calls = []
    with observed(calls.append):
        run(attention, q, -q, q, mask=masks.Causal())
    run(attention, q, -q, q)
    assert len(calls) == 1
    scores = np.einsum("btnd,bsnd->bnts", q, -q) / 2.0
    keep = np.tril(np.ones((3, 3), bool))
    assert_close(run(dense.largest_logit, calls[0]), scores[:, :, keep].max())
