"""What a position layer of one's own must do in an attention layer; its oracle is given."""

import keras
import numpy as np
import pytest

from kattn.layers import SelfAttention
from tests import oracle
from tests.checks import shake
from tests.compute import assert_close, run


def attend(layer, x, *, embed=None, rotate=None, bias=None):
    """What `SelfAttention` of 2 heads computes of `(B, 5, 8)` in NumPy float64.

    `embed` changes x, `rotate` queries and keys; `bias` is `(N, T, S)`.
    """
    w = {weight.path.split("/", 1)[1]: run(keras.ops.convert_to_tensor, weight).astype(float)
         for weight in layer.weights}  # fmt: skip
    x = x.astype(float) if embed is None else embed(x.astype(float))
    q, k, v = np.split(x @ w["qkv/kernel"] + w["qkv/bias"], 3, axis=-1)
    q, k, v = (part.reshape(len(x), 5, 2, 4) for part in (q, k, v))
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    bias = None if bias is None else np.broadcast_to(bias, (len(x), 2, 5, 5))
    mixed = oracle.attention(q, k, v, bias=bias)[0].reshape(len(x), 5, 8)
    return mixed @ w["output/kernel"] + w["output/bias"]


def check_in_a_model(make, changes, folder):
    """Shared by two attention layers it computes what the oracle does, saved and loaded, too.

    Args:
        make: Gives a new position layer that is registered with Keras.
        changes: `changes(position)`, the options of `attend`.
        folder: A `pathlib.Path`.
    """
    node, position = keras.Input((5, 8)), make()
    layers = [SelfAttention(2, position=position) for _ in range(2)]
    model = keras.Model(node, layers[1](layers[0](node)))
    for layer in layers:
        shake(layer)
    x = np.random.default_rng(6).normal(size=(3, 5, 8)).astype("float32")
    expected = attend(layers[0], x, **changes(position))
    # The second layer holds the same position layer, whose weights have another path in it.
    expected = attend(layers[1], expected, **changes(position))
    assert_close(model.predict(x, verbose=0), expected)
    model.save(folder / "model.keras")
    again = keras.saving.load_model(folder / "model.keras")
    assert_close(again.predict(x, verbose=0), expected)
    assert again.layers[1].position is again.layers[2].position
    assert type(again.layers[1].position) is type(position)


def check_sharing(make, name):
    """Weights are made once, and other sizes are refused by a sentence.

    Args:
        make: Gives a new position layer with weights that depend on one size.
        name: Of that size.
    """
    sizes, position = {"width": 8, "num_heads": 2, "key_dim": 4}, make()
    position.attach(**sizes)
    weights = list(position.weights)
    assert weights
    assert position.built
    position.attach(**{**{key: 3 * size for key, size in sizes.items()}, name: sizes[name]})
    assert len(position.weights) == len(weights)
    assert all(a is b for a, b in zip(position.weights, weights, strict=True))
    message = f"was built for {name}={sizes[name]}; it cannot be shared with {name}=6[.]$"
    with pytest.raises(ValueError, match=message):
        position.attach(**{**sizes, name: 6})
