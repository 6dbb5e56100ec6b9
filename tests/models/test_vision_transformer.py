import functools
import re

import numpy as np
import pytest

from kattn.models import VisionTransformer
from tests import transformer_oracle
from tests.checks import (
    check_config,
    check_dropout,
    check_fixture,
    check_precision,
    check_training,
    ready,
)
from tests.compute import assert_close, run
from tests.transformer_oracle import under, weights_of


def make(**options):
    """A model of 3 classes by images of 4 x 6 in patches of 2 x 3: two rows of two patches."""
    given = {"channels": 2, "num_layers": 2, "num_heads": 2, "width": 8, "hidden_dim": 6, **options}
    return VisionTransformer((4, 6), (2, 3), 3, **given)


@pytest.fixture
def images(rng):
    return rng.normal(size=(3, 4, 6, 2)).astype("float32")


def expected_logits(model, images):
    """Dosovitskiy et al. 2020, eq. 1 to 4."""
    w, (rows, columns) = weights_of(model), (2, 2)
    patches = [
        images[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].reshape(len(images), -1)
        for row in range(rows)
        for column in range(columns)
    ]
    h = np.stack(patches, axis=1) @ w["embedding/projection/kernel"]
    h = h + w["embedding/projection/bias"]
    if model.pooling == "class_token":
        h = np.concatenate([np.repeat(w["embedding/class_token"], len(h), axis=0), h], axis=1)
    h = h + w["embedding/position/table"]
    see = [np.ones((len(h), 2, h.shape[1], h.shape[1]), bool)] * 2
    h = transformer_oracle.stack(under(w, "encoder"), h, see, 2, placement=model.options.placement)
    pooled = h[:, 0] if model.pooling == "class_token" else h.mean(axis=1)
    return pooled @ w["head/kernel"] + w["head/bias"]


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_matches_oracle(pooling, images):
    model = ready(functools.partial(make, pooling=pooling), [images])
    wanted = expected_logits(model, images.astype(float))
    assert_close(run(model, images), wanted)
    first = ready(functools.partial(make, pooling=pooling, data_format="channels_first"),
                  [images.transpose(0, 3, 1, 2)])  # fmt: skip
    first.set_weights(model.get_weights())
    assert_close(run(first, images.transpose(0, 3, 1, 2)), wanted)


def full(**options):
    return make(**{"dropout": 0.1, "drop_path": 0.2, "seed": 3, "use_qk_norm": True, **options})


@pytest.mark.parametrize("check", [check_config, check_precision, check_training, check_dropout])
def test_as_layers(check, images):
    check(full, [images])


def test_models_of_other_backends():
    check_fixture(full, "vision_transformer")


def test_one_integer_for_both_sides():
    model = VisionTransformer(6, 3, 3, 1, 2, 8, channels=1)
    assert (model.image_size, model.patch_size) == ((6, 6), (3, 3))
    assert model.compute_output_shape((5, 6, 6, 1)) == (5, 3)


def test_bad_arguments(images):
    with pytest.raises(ValueError, match=r"divisible.*image_size=\(6, 6\), patch_size=\(4, 4\)"):
        VisionTransformer(6, 4, 3, 1, 2, 8)
    with pytest.raises(ValueError, match=r"`patch_size` must be an integer >= 1 or two of them"):
        VisionTransformer(6, (1, 2, 3), 3, 1, 2, 8)
    with pytest.raises(ValueError, match=r"`pooling` must be one of class_token, mean.*'first'"):
        make(pooling="first")
    wanted = r"must have shape \(batch, 4, 6, 2\).*images\.shape="
    for shape in ((3, 4, 5, 2), (4, 6, 2), (3, 4, 6, 3), (3, 2, 4, 6)):
        with pytest.raises(ValueError, match=wanted + re.escape(str(shape))):
            make()(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=r"must have shape \(batch, 2, 4, 6\).*channels_first"):
        make(data_format="channels_first")(images)
