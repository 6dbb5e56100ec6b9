import keras
import numpy as np
import pytest

from kattn.masks.checks import MAY_ATTEND, REAL_STEP, bool_tensor, check_broadcast, int_tensor

KEEP = np.ones((2, 7), bool)


def test_what_fits_is_a_tensor():
    node = keras.KerasTensor((None, 7), dtype="bool")
    assert bool_tensor(node, "mask", ("(B, S)",)) is node
    assert keras.ops.is_tensor(bool_tensor(KEEP, "mask", ("(B, S)",)))
    found = int_tensor([3, 4], "length", "(B,)")
    assert keras.backend.standardize_dtype(found.dtype) == "int32"


BAD = {
    "list": (
        [[True, False]],
        "`mask` must be boolean, True = may attend; wrap a list as np.array(mask, bool); "
        "received: type='list'",
    ),
    "integers": (
        np.ones((2, 7), "uint8"),
        "`mask` must be boolean, True = may attend; write `mask != 0` if it holds 1 and 0; "
        "received: mask.shape=(2, 7), dtype='uint8'",
    ),
    "additive": (
        np.full((2, 7), -1e9, "float32"),
        "`mask` must be boolean, True = may attend; numbers that are added to the scores are a "
        "bias: pass them as `bias`, or write `mask > -1` if they are 0 and -inf (or -1e9), "
        "`mask != 0` if they are 1 and 0; received: mask.shape=(2, 7), dtype='float32'",
    ),
    "rank": (
        KEEP[0],
        "`mask` must have rank 2, (T, S) or rank 4, (B, N, T, S); True = may attend; "
        "received: mask.shape=(7,)",
    ),
}


@pytest.mark.parametrize(("array", "message"), BAD.values(), ids=BAD)
def test_messages_say_what_to_write(array, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        bool_tensor(array, "mask", ("(T, S)", "(B, N, T, S)"), MAY_ATTEND)
    assert str(caught.value) == message


def test_padding_is_told_from_that_of_torch():
    with pytest.raises(ValueError, match=r"True = real step \(PyTorch's .*`~key_padding_mask`\)"):
        bool_tensor(KEEP[0], "mask", ("(B, S)",), REAL_STEP)


def test_integers():
    for array in (np.ones((2,), "float32"), np.ones((2, 2), "int32")):
        with pytest.raises(ValueError, match=r"`length` of a mask must be integers of rank 1"):
            int_tensor(array, "length", "(B,)")


def test_sizes():
    check_broadcast(KEEP, "keys", (2, 7), "(B, S)")
    check_broadcast(KEEP[:1], "keys", (None, 7), "(B, S)")
    with pytest.raises(ValueError, match=r"`keys` of a mask must broadcast to \(B, S\)=\(3, 7\)"):
        check_broadcast(KEEP, "keys", (3, 7), "(B, S)")
