import numpy as np
import pytest
from keras import ops

from kattn.ops import causal_convolution, decode_causal_convolution
from tests.compute import assert_close, differentiate, quick, run
from tests.recurrent_oracle import KEEP


def inputs(rng, size=3):
    shapes = (3, 5, 4), (size, 4), (3, size - 1, 4)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def expected(x, kernel, before, keep):
    """One output at a time, and the last real steps; each item has a list of what it has seen."""
    y, rest = np.zeros(x.shape), []
    for i in range(len(x)):
        seen = list(before[i].astype(float))
        for t in range(x.shape[1]):
            if keep[i, t]:
                seen.append(x[i, t])
                y[i, t] = sum(w * s for w, s in zip(kernel[::-1], seen[::-1], strict=False))
        rest.append(np.reshape(seen[len(seen) - len(kernel) + 1 :], before.shape[1:]))
    return y, np.stack(rest)


@pytest.mark.parametrize("keep", [np.ones_like(KEEP), KEEP], ids=["whole", "padded"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_matches_the_equation(rng, size, keep):
    x, kernel, before = inputs(rng, size)
    wanted, rest = expected(x, kernel, before, keep)
    for mask in [keep] if not keep.all() else [keep, None]:
        found = run(quick(decode_causal_convolution), x, kernel, before, mask=mask)
        assert_close(found[0], wanted)
        assert_close(found[1], rest)
    y = run(quick(causal_convolution), x, kernel, mask=keep)
    assert_close(y, expected(x, kernel, 0 * before, keep)[0])
    y = run(quick(causal_convolution), x, kernel, before=before)
    assert_close(y, expected(x, kernel, before, np.ones_like(keep))[0])


def test_in_pieces(rng):
    x, kernel, before = inputs(rng)
    wanted, _ = expected(x, kernel, before, KEEP)
    decode, found = quick(decode_causal_convolution), []
    for t in range(5):
        part = slice(t, t + 1)
        y, before = run(decode, x[:, part], kernel, before, mask=KEEP[:, part])
        found.append(y)
    assert_close(np.concatenate(found, axis=1), wanted)


def test_gradients(rng):
    """Padding and what follows have none; a step has those of the outputs that see it."""
    x, kernel, before = inputs(rng)
    upstream = rng.normal(size=x.shape)

    def function(x, kernel, before):
        return decode_causal_convolution(x, kernel, before, mask=ops.convert_to_tensor(KEEP))[0]

    _, found = differentiate(quick(function), [x, kernel, before], upstream)
    for place, array in enumerate((x, kernel, before)):
        for j in np.ndindex(array.shape):  # exact: the function is linear in each
            arrays = [np.array(a, np.float64) for a in (x, kernel, before)]
            arrays[place][j] += 1.0
            more = expected(*arrays, KEEP)[0] - expected(x, kernel, before, KEEP)[0]
            assert abs(found[place][j] - (more * upstream).sum()) < 1e-4


BAD = {
    "x": (lambda x, k, b: (x[0], k, b), r"`x` must have rank 3, \(B, T, C\); .*\(5, 4\)"),
    "kernel": (lambda x, k, b: (x, k[:, :3], b), r"`kernel` must have shape \(K, C\).*\(3, 3\)"),
    "before": (
        lambda x, k, b: (x, k, b[:, :1]),
        r"`before` must have shape \(B, K - 1, C\).*before.shape=\(3, 1, 4\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(rng, name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        decode_causal_convolution(*map(ops.convert_to_tensor, make(*inputs(rng))))


def test_bad_mask(rng):
    x, kernel, before = map(ops.convert_to_tensor, inputs(rng))
    with pytest.raises(ValueError, match=r"`mask` must have shape \(B, T\)=\(3, 5\).*\(3, 4\)"):
        decode_causal_convolution(x, kernel, before, mask=ops.convert_to_tensor(KEEP[:, :4]))
