"""NeighborhoodAttention1D, 2D and 3D against NAT and SASA, one query at a time."""

import numpy as np
import pytest
from keras import ops

from kattn import layers
from kattn.layers import (
    ALiBi,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
    RelativeTable,
    RotaryEmbedding,
    SinusoidalPositions,
)
from tests import compute
from tests.checks import check_layer
from tests.compute import assert_close, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import FIRST, LAST, built, maps, weights_of
from tests.layers.spatial.map_oracle import attend

KINDS = {1: NeighborhoodAttention1D, 2: NeighborhoodAttention2D, 3: NeighborhoodAttention3D}
OPTIONS = {
    "key_dim": 4,
    "value_dim": 5,
    "dropout": 0.3,
    "seed": 1,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
WINDOWS = {
    "moved": {"kernel_size": 3},
    "cut off, even": {"kernel_size": 2, "clamped": False},
    "dilated": {"kernel_size": 2, "dilation": 2},
    "causal": {"kernel_size": 3, "causal": True},
    "wide": {"kernel_size": 9},
}


def maker(rank, position=None, **window):
    """Layers of a rank; `position` makes a position layer for each of them."""

    def make(**options):
        own = {"position": position and position(), "kernel_size": 3}
        return KINDS[rank](2, **{**own, **OPTIONS, **window, **options})

    return make


def visible(side, place, size, dilation, causal, clamped):
    """The coordinates that one sees from `place`, along one side."""
    own = [i for i in range(side) if (i - place) % dilation == 0]
    first = own.index(place) - (size - 1 if causal else size // 2)
    if clamped and not causal:
        first = max(min(first, len(own) - size), 0)
    return own[max(first, 0) : max(first + size, 0)]


def sees(layer, sides, keep):
    """Whether a cell sees another, by the definition of the window along each side."""
    seen = [
        {
            place: visible(side, place, size, dilation, causal, layer.clamped)
            for place in range(side)
        }
        for side, size, dilation, causal in zip(
            sides, layer.kernel_size, layer.dilation, layer.causal, strict=True
        )
    ]

    def both(query, key):
        near = all(k in of_side[q] for of_side, q, k in zip(seen, query, key, strict=True))
        return near and keep[key]

    return both


def oracle_of(layer, bias=None):
    def oracle(x, keep, weights):
        x = np.where(keep[..., None], x, 0.0)
        return attend(x, weights, 2, sees(layer, keep.shape, keep), bias)[0]

    return oracle


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, window, data_format):
    window = dict(WINDOWS[window])
    if rank == 3 and "dilation" in window:
        window["dilation"] = (2, 1, 2)  # the middle side has two cells
    make = maker(rank, **window)
    gate_checks.check_oracle(make, oracle_of(make()), rank, data_format)


def test_each_side_has_its_own_window():
    make = maker(2, kernel_size=(3, 2), dilation=(1, 2), causal=(False, True))
    gate_checks.check_oracle(make, oracle_of(make()), 2, LAST)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_relative_tables_go_by_the_difference_in_a_window(rank):
    """On a map of any sides, where cells of a dilated window are one apart."""
    size, dilation = ((3, 2, 2)[:rank], ((2,), (1, 2), (1, 1, 2))[rank - 1])
    make = maker(rank, kernel_size=size, dilation=dilation, position=lambda: RelativeTable(size))
    x, keep = maps(rank)
    layer = built(make, x)
    (name,) = (name for name in weights_of(layer) if name.endswith("table"))
    table = weights_of(layer)[name].reshape(2, *(2 * n - 1 for n in size))

    def bias(head, query, key):
        steps = zip(query, key, size, dilation, strict=True)
        return table[(head, *((k - q) // d + n - 1 for q, k, n, d in steps))]

    oracle = oracle_of(layer, bias)
    for real in (np.ones_like(keep), keep):
        pairs = zip(np.float64(x), real, strict=True)
        wanted = np.stack([oracle(*pair, weights_of(layer)) for pair in pairs]) * real[..., None]
        assert_close(result(layer, x, mask=ops.convert_to_tensor(real)), wanted)


def test_vectors_for_differences_of_coordinates():
    """The bias of BoTNet, q . (r_y + r_x) / sqrt(D), in windows."""
    make = maker(2, position=lambda: RelativeTable((3, 3), by_query=True))
    x, _ = maps(2)
    layer = built(make, x)
    weights = weights_of(layer)
    tables = [value for name, value in weights.items() if "table_" in name]
    q = (np.float64(x[0]) @ weights["qkv/kernel"] + weights["qkv/bias"])[..., :8]

    def bias(head, query, key):
        vectors = [t[k - i + 2] for t, i, k in zip(tables, query, key, strict=True)]
        return q[query][4 * head : 4 * head + 4] @ sum(vectors) / 2

    wanted = oracle_of(layer, bias)(np.float64(x[0]), np.ones(x.shape[1:3], bool), weights)
    assert_close(result(layer, x[:1])[0], wanted)


def test_other_positions():
    """Rotated heads and positions of the inputs go by the cells of the whole map."""
    x, _ = maps(2)
    for position in (RotaryEmbedding(axes=2), SinusoidalPositions(axes=2, grid=(5, 4))):
        layer = built(maker(2, lambda p=position: p, kernel_size=5, clamped=False), x)
        plain = layers.SelfAttention2D(
            2, 4, value_dim=5, use_residual=False, position=position, data_format=LAST
        )
        plain.build(x.shape)
        plain.set_weights(layer.get_weights())
        far = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) <= 2
        assert far[2].all()  # the middle row, and all columns, see the whole map
        assert_close(result(layer, x)[:, 2, 2], result(plain, x)[:, 2, 2])


def test_a_bias_of_sequences_is_refused():
    with pytest.raises(ValueError, match="ALiBi has a bias for sequences only"):
        maker(2, ALiBi)()(maps(2)[0])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_attention_weights(rank):
    make, (x, keep) = maker(rank), maps(rank)
    layer = built(make, x)
    found = compute.run(layer.attention_weights, x, ops.convert_to_tensor(keep))
    for item, real, maps_of_item in zip(np.float64(x), keep, found, strict=True):
        inside = np.where(real[..., None], item, 0.0)
        _, wanted = attend(inside, weights_of(layer), 2, sees(layer, real.shape, real))
        assert_close(maps_of_item, wanted * real.reshape(1, -1, 1))


make = maker(
    2,
    lambda: RelativeTable((3, 2), name="table"),
    kernel_size=(3, 2),
    dilation=(1, 2),
    causal=(True, False),
    clamped=False,
    use_bias=False,
    implementation="dense",
    data_format=FIRST,
)


def test_sequences():
    """The battery; and that nothing beyond the window is seen."""
    x = np.random.default_rng(0).normal(size=(3, 6, 8))
    check_layer(maker(1, dilation=2, clamped=False), [x])
    check_layer(maker(1, causal=True, clamped=False), [x], causal=True, window=3)


def test_images():
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 8))
    check_layer(make, [x], sequence=False, masked=False, fixture="neighborhood_attention_2d")


def test_volumes():
    x = np.random.default_rng(0).normal(size=(3, 2, 3, 2, 8))
    check_layer(maker(3, kernel_size=2), [x], sequence=False, masked=False)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(maker(2), 2, data_format)
    gate_checks.check_unknown_sides(maker(2, lambda: RelativeTable((3, 3))), data_format)


def test_bad_input():
    gate_checks.check_bad_input(maker(2))
    for options, message in (
        (
            {"kernel_size": (3, 3, 3)},
            r"`kernel_size` must be .* a tuple of 2, one for each side.*\(3, 3, 3",
        ),
        ({"kernel_size": 0}, r"`kernel_size` must be an integer >= 1.*kernel_size=0"),
        ({"dilation": (1, 0)}, r"`dilation` must be an integer >= 1.*dilation=\(1, 0\)"),
        ({"causal": 2}, r"`causal` must be a bool, or a tuple.*causal=\(2, 2\)"),
        ({"causal": (True,)}, r"The tuples must have one entry for each axis.*causal=\(True,\)"),
        ({"num_heads": 0}, "`num_heads` must be an integer >= 1"),
        ({"dropout": 1.0}, "`dropout` must be a fraction"),
        ({"implementation": "quick"}, "`implementation` must be one of auto"),
    ):
        with pytest.raises(ValueError, match=message):
            NeighborhoodAttention2D(**options)
    with pytest.raises(ValueError, match=r"`dilation` must be smaller than each side.*\(5, 4\)"):
        NeighborhoodAttention2D(dilation=4).build((None, 5, 4, 6))
    with pytest.raises(ValueError, match=r"must be divisible by `num_heads`.*num_heads=4"):
        NeighborhoodAttention2D(4).build((None, 5, 4, 6))
