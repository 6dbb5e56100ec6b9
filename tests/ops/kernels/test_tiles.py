"""Which blocks are visited, against the mask as an array."""

import keras
import numpy as np
import pytest

from kattn import masks
from kattn.ops.kernels import tiles
from kattn.ops.kernels.tiles import Tiles, from_blocks, to_blocks
from kattn.spans import Span
from tests.compute import run

MASKS = {
    "none": None,
    "causal": masks.Causal(),
    "window": masks.Window(3),
    "causal window": masks.Causal() & masks.Window(4),
    "global": masks.Window(2) | masks.Global([1]),
    "padding": masks.Padding(np.ones((1, 17), bool)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 4)


class TestTiles:
    def visited(self, over, count):
        """The blocks that `over` visits for each index, and whether the mask was asked for."""
        found = {}

        def body(other, state, masked):
            found[index, int(other)] = masked
            return state

        for index in range(count):
            over(index, body, keras.ops.zeros(()))
        return found

    @pytest.mark.skipif(keras.backend.backend() != "torch", reason="loops of others are traced")
    @pytest.mark.parametrize("listed", [True, False])
    @pytest.mark.parametrize("queries", [13, 17])
    @pytest.mark.parametrize("name", MASKS)
    def test_blocks_that_the_mask_rules_out_are_not_visited(self, name, queries, listed):
        keys, mask = 17, MASKS[name]
        cut = Tiles.make(queries, keys, mask)
        if not listed:  # as where the number of steps is unknown
            cut.__dict__["coverage"] = None
        seen = np.ones((queries, keys), bool)
        if mask is not None:
            block = mask.block(Span(0, queries), Span(0, keys), keys - queries)
            seen = np.broadcast_to(run(lambda: block), (1, 1, queries, keys))[0, 0]
        rows = self.visited(cut.over_columns, cut.row_blocks)
        columns = self.visited(cut.over_rows, cut.column_blocks)
        assert rows == {(i, j): masked for (j, i), masked in columns.items()}
        for i in range(cut.row_blocks):
            for j in range(cut.column_blocks):
                (q, n), (k, m) = cut.steps(i, j)
                part = seen[q : q + n, k : k + m]
                assert (i, j) in rows or not part.any()
                assert rows.get((i, j), True) or part.all()
        band = mask is None or mask.is_band
        assert (
            not band
            or len(rows)
            <= sum(
                seen[
                    i * cut.rows : (i + 1) * cut.rows, j * cut.columns : (j + 1) * cut.columns
                ].any()
                for i in range(cut.row_blocks)
                for j in range(cut.column_blocks)
            )
            + 2 * cut.row_blocks
        )

    def test_blocks_fill_the_steps_as_well_as_they_can(self):
        cut = Tiles.make(9, 17)
        assert (cut.rows, cut.row_blocks) == (3, 3)
        assert (cut.columns, cut.column_blocks) == (4, 5)
        assert cut.offset == 8


@pytest.mark.parametrize("size", [1, 4, 5, 13])
def test_blocks_and_back(size):
    x = np.random.default_rng(0).normal(size=(2, 3, 13, 4)).astype("float32")
    blocks = run(to_blocks, keras.ops.convert_to_tensor(x), size)
    count = -(-13 // size)
    assert blocks.shape == (count, 2, 3, size, 4)
    np.testing.assert_array_equal(blocks[0], x[:, :, :size])
    back = run(from_blocks, keras.ops.convert_to_tensor(blocks))
    np.testing.assert_array_equal(back[:, :, :13], x)
    assert not back[:, :, 13:].any()
