"""Recurrent layers that attend, one item and one step at a time, in float64.

    y, weights, states = run(w, x, memory, keep, keep_memory, cell="lstm", score="additive", ...)

`w` are the weights by name, as the papers' equations have them: "cell/kernel", "attention/query"...
"""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def lstm(w, x, states):
    """Hochreiter and Schmidhuber 1997, with a forget gate."""
    h, c = states
    i, f, g, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, [h, c]


def gru(w, x, states):
    """Cho et al. 2014; the reset gate stands before the matrix if there is one bias."""
    (h,) = states
    n = len(h)
    u = w["recurrent_kernel"]
    of_x = x @ w["kernel"] + (w["bias"] if w["bias"].ndim == 1 else w["bias"][0])
    if w["bias"].ndim == 1:
        z, r = (sigmoid(of_x[k * n :][:n] + h @ u[:, k * n :][:, :n]) for k in (0, 1))
        new = np.tanh(of_x[2 * n :] + (r * h) @ u[:, 2 * n :])
    else:
        of_h = h @ u + w["bias"][1]
        z, r = (sigmoid(of_x[k * n :][:n] + of_h[k * n :][:n]) for k in (0, 1))
        new = np.tanh(of_x[2 * n :] + r * of_h[2 * n :])
    h = z * h + (1 - z) * new
    return h, [h]


def simple(w, x, states):
    h = np.tanh(x @ w["kernel"] + states[0] @ w["recurrent_kernel"] + w["bias"])
    return h, [h]


CELLS = {"lstm": lstm, "gru": gru, "simple": simple}


def part(w, name):
    return {k.removeprefix(f"{name}/"): x for k, x in w.items() if k.startswith(f"{name}/")}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def scores_of(w, kind, s, h, before, heads):
    """`(N, S)`: Luong et al. eq. 8; Bahdanau et al. A.1.2; Chorowski et al. eq. 8 and 9."""
    if kind == "dot":
        return np.array([[row @ s for row in h]])
    if kind == "general":
        return np.array([[row @ w["key/kernel"] @ s for row in h]])
    if kind == "heads":
        q = s @ w["query/kernel"] + w["query/bias"]
        d = len(q) // heads
        k = (h @ w["key_value/kernel"] + w["key_value/bias"])[:, : heads * d]
        return np.array(
            [[row[n * d :][:d] @ q[n * d :][:d] / np.sqrt(d) for row in k] for n in range(heads)]
        )
    found = []
    for j, row in enumerate(h):
        z = s @ w["query/kernel"] + row @ w["key/kernel"] + w["key/bias"]
        if kind == "location":
            size = len(w["filter"])
            f = np.zeros(w["filter"].shape[-1])
            for tap in range(size):
                i = j + tap - size // 2
                if 0 <= i < len(h):
                    f += before[0, i] * w["filter"][tap, 0]
            z = z + f @ w["location/kernel"]
        found.append((np.tanh(z) @ w["energy/kernel"])[0])
    return np.array([found])


def values_of(w, kind, h, heads):
    """`(N, S, Dv)`."""
    if kind != "heads":
        return h[None]
    v = h @ w["key_value/kernel"] + w["key_value/bias"]
    d = w["query/kernel"].shape[1]
    return np.stack(np.split(v[:, d:], heads, axis=1))


def attend(w, s, h, allowed, places, count, before, options):
    """Context and `(N, S)` weights of one state; `places` are the positions of the steps of h."""
    kind, heads = options["score"], options.get("heads", 1)
    scores = scores_of(part(w, "attention"), kind, s, h, before, heads)
    values = values_of(part(w, "attention"), kind, h, heads)
    gauss = np.ones(len(h))
    if "reach" in options:
        reach, v = options["reach"], part(w, "window")
        p = count * sigmoid(np.tanh(s @ v["query/kernel"]) @ v["position/kernel"])[0]
        allowed = allowed & (np.abs(places - p) <= reach)
        gauss = np.exp(-((places - p) ** 2) / (2 * (reach / 2) ** 2))
    weights = np.zeros(scores.shape)
    for n in range(heads):
        if allowed.any():
            weights[n, allowed] = softmax(scores[n, allowed])
        weights[n] *= gauss
    return np.concatenate([weights[n] @ values[n] for n in range(heads)]), weights


def visible(place, places, causal, window):
    """Which steps at these places a step may attend to, one by one."""
    found = []
    for other in places:
        late = causal and other > place
        far = window is not None and abs(place - other) >= window
        found.append(not late and not far)
    return np.array(found)


def output_of(w, kind, s, context, *, after):
    """Luong et al. eq. 5 for "attentional"."""
    kind = kind or ("attentional" if after else "state")
    if kind == "attentional":
        return np.tanh(np.concatenate([context, s]) @ w["combine/kernel"])
    return {"state": s, "context": context, "both": np.concatenate([s, context])}[kind]


def one_item(w, x, h, keep, keep_h, own, options, states):
    """Outputs `(T, F)`, weights `(T, N, S)` and the last states of one item."""
    causal, window = options.get("causal", False), options.get("window")
    after = options.get("attend") == "after"
    heads, step = options.get("heads", 1), CELLS[options["cell"]]
    index, at = (np.cumsum(k) - 1 for k in (keep, keep_h))
    if own and window is not None:  # where padding counts
        index, at = np.arange(len(x)), np.arange(len(h))
    states, fed = [np.array(s) for s in states[: 2 if options["cell"] == "lstm" else 1]], None
    if options.get("feeding"):
        fed = np.zeros(options["out"])
    before, outputs, maps = np.zeros((heads, len(h))), [], []
    for t in range(len(x)):
        if not keep[t]:
            outputs.append(np.zeros(options["out"]))
            maps.append(np.zeros((heads, len(h))))
            continue
        allowed = keep_h & visible(index[t], at, causal, window)
        count = min(index[t] + 1, keep_h.sum()) if causal else keep_h.sum()
        if not after:
            context, weights = attend(w, states[0], h, allowed, at, count, before, options)
            s, states = step(part(w, "cell"), np.concatenate([x[t], context]), states)
        else:
            given = x[t] if fed is None else np.concatenate([x[t], fed])
            s, states = step(part(w, "cell"), given, states)
            context, weights = attend(w, states[0], h, allowed, at, count, before, options)
        y = output_of(w, options.get("output"), s, context, after=after)
        fed = y if fed is not None else None
        before = weights
        outputs.append(y)
        maps.append(weights)
    return np.stack(outputs), np.stack(maps), [*states, *([] if fed is None else [fed])]


def run(w, x, memory, keep, keep_memory, options, initial=None):
    """Outputs `(B, T, F)`, weights `(B, N, T, S)` and the last states, `(B, size)` each."""
    own, back = memory is None, options.get("go_backwards", False)
    memory, keep_memory = (x, keep) if own else (memory, keep_memory)
    units = options["units"]
    outputs, maps, last = [], [], []
    for b in range(len(x)):
        first = [np.zeros(units)] * 2 if initial is None else [s[b] for s in initial]
        order = slice(None, None, -1) if back else slice(None)
        y, a, states = one_item(
            w, x[b][order], memory[b][order], keep[b][order], keep_memory[b][order], own, options,
            first,
        )  # fmt: skip
        outputs.append(y)
        maps.append(a[:, :, order])
        last.append(states)
    states = [np.stack([item[i] for item in last]) for i in range(len(last[0]))]
    return np.stack(outputs), np.swapaxes(np.stack(maps), 1, 2), states
