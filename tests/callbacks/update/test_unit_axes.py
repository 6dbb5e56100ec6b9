import keras

from kattn.callbacks.update.unit_axes import unit_axes
from kattn.layers import MultiHeadAttention


class Everything(keras.layers.Layer):
    """Layers whose kernels have their outputs along different axes."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, name="dense")
        self.conv = keras.layers.Conv2D(4, (2, 3), name="conv")
        self.depthwise = keras.layers.DepthwiseConv2D((2, 2), depth_multiplier=2, name="depthwise")
        self.transposed = keras.layers.Conv2DTranspose(2, (2, 2), name="transposed")
        self.einsum = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="einsum")
        self.merge = keras.layers.EinsumDense("abde,dec->abc", (None, 6), name="merge")
        self.table = keras.layers.Embedding(7, 5, name="table")
        self.stock = keras.layers.MultiHeadAttention(2, 3, name="stock")
        self.own = MultiHeadAttention(2, 3, name="own")

    def build(self, input_shape):
        self.dense.build((None, 5))
        self.conv.build((None, 8, 8, 5))
        self.depthwise.build((None, 8, 8, 5))
        self.transposed.build((None, 8, 8, 5))
        self.einsum.build((None, 4, 6))
        self.merge.build((None, 4, 2, 3))
        self.table.build((None,))
        self.stock.build((None, 4, 6), (None, 4, 6))
        self.own.build((None, 4, 6), (None, 4, 6))


# Shapes of kernels, and axes along which the numbers of one unit lie.
UNITS = {
    "dense/kernel": ((5, 3), (0,)),
    "dense/bias": ((3,), (0,)),
    "conv/kernel": ((2, 3, 5, 4), (0, 1, 2)),
    "depthwise/kernel": ((2, 2, 5, 2), (0, 1)),
    "transposed/kernel": ((2, 2, 2, 5), (0, 1, 3)),
    "einsum/kernel": ((6, 2, 3), (0,)),
    "merge/kernel": ((2, 3, 6), (0, 1)),
    "table/embeddings": ((7, 5), (1,)),
    "stock/query/kernel": ((6, 2, 3), (0,)),
    "stock/query/bias": ((2, 3), (0, 1)),
    "stock/attention_output/kernel": ((2, 3, 6), (0, 1)),
    "own/query/kernel": ((6, 2, 3), (0,)),
    "own/attention_output/kernel": ((2, 3, 6), (0, 1)),
}


def test_units():
    layer = Everything()
    layer.build(None)
    model = keras.Sequential([layer])
    axes = unit_axes(model)
    weights = {w.path: w for w in layer.weights}
    for end, (shape, expected) in UNITS.items():
        (path,) = [
            p for p in weights if p.endswith("/" + end) and p.count("/") == end.count("/") + 1
        ]
        found = tuple(weights[path].shape), axes[id(weights[path])]
        assert found == (shape, expected), path


def test_units_of_weights_with_equal_paths():
    """A Dense and an EinsumDense, each alone in a model, have kernels of the same path."""
    dense = keras.layers.Dense(3, name="fc")
    einsum = keras.layers.EinsumDense("ab,cdb->acd", (2, 3), name="fc")
    inputs = keras.Input((2,))
    blocks = [keras.Model(inputs, layer(inputs)) for layer in (dense, einsum)]
    model = keras.Model(inputs, [block(inputs) for block in blocks])
    axes = unit_axes(model)
    assert dense.kernel.path == einsum.kernel.path
    assert axes[id(dense.kernel)] == (0,)
    assert axes[id(einsum.kernel)] == (2,)
