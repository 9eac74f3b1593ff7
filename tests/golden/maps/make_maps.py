"""Makes maps.json: small fits of aligned cuts as numpy makes them from the hidden states themselves, by augmented least squares (lstsq), which
shares nothing with normal equations.

    python make_maps.py [OUT]        OUT: this folder

Hidden states are exact in float32, as models' are. `most`: tokens kept of each held-out context, of each kind.
"""
import json, os, sys
import numpy as np

FORMS = ("diagonal", "low-rank", "full")


def massive(x, y):
    beyond = lambda v: (n := np.linalg.norm(v, axis=1)) > 10 * np.sort(n)[len(n) // 2]
    return beyond(x) | beyond(y)


def weights(x, y):
    """Of a whole context; a massive token counts as ten."""
    return np.where(massive(x, y), 10, 1) * 2 / ((x ** 2).sum(1) + (y ** 2).sum(1))


def centre(w, v): return v - (w[:, None] * v).sum(0) / w.sum()


def ridge(x, r, w, lam):
    """Weighted and centred; minimises sum w |r - x B - b|^2 + lam |B|^2 by rows appended to the data."""
    root = np.sqrt(w)[:, None]
    a = np.vstack([root * centre(w, x), np.sqrt(lam) * np.eye(x.shape[1])])
    return np.linalg.lstsq(a, np.vstack([root * centre(w, r), np.zeros((x.shape[1], r.shape[1]))]), rcond=None)[0]


def variance(x, w): return (w[:, None] * centre(w, x) ** 2).sum() / (w.sum() * x.shape[1])


def fitted(form, x, y, w, share, rank):
    """B and b of a form; share None: B = 0."""
    r = y - x
    mean = lambda v: (w[:, None] * v).sum(0) / w.sum()
    d = x.shape[1]
    if share is None: return np.zeros((d, d)), mean(r)
    lam = share * variance(x, w) * w.sum()
    if form == "full":
        B = ridge(x, r, w, lam)
    else:
        xc, rc = centre(w, x), centre(w, r)
        s = (w[:, None] * xc * rc).sum(0) / ((w[:, None] * xc ** 2).sum(0) + lam)
        B = np.diag(s)
        if form == "low-rank":
            rest = ridge(x, rc - xc * s, w, lam)
            # Reduced-rank regression: the best directions of what the ridge fit predicts, in its own metric.
            a = np.vstack([np.sqrt(w)[:, None] * xc, np.sqrt(lam) * np.eye(d)])
            v = np.linalg.svd(a @ rest, full_matrices=False)[2][:rank].T
            B = B + rest @ v @ v.T
    return B, mean(r) - mean(x) @ B


def kept(contexts, most):
    """Of each context the rows that are kept, with the weight of what they stand for."""
    out = []
    for x, y in contexts:
        w, big = weights(x, y), massive(x, y)
        rows, stands = [], []
        for kind in (~big, big):
            at = np.flatnonzero(kind)
            n = min(len(at), most)
            rows += [at[(2 * k + 1) * len(at) // (2 * n)] for k in range(n)]
            stands += [len(at) / max(n, 1)] * n
        rows = np.array(rows)
        out.append((x[rows], y[rows], w[rows] * stands, big[rows]))
    return out


def score(B, b, held):
    """Errors of all and of ordinary tokens, and their parts by context."""
    y, w, big = (np.concatenate([c[i] for c in held]) for i in (1, 2, 3))
    squares = lambda v: (v ** 2).sum(1)
    spread = w * squares(centre(w, y))
    parts = [c[2] * squares(c[1] - c[0] - c[0] @ B - b) for c in held]
    every = np.concatenate(parts)
    return every.sum() / spread.sum(), every[~big].sum() / spread[~big].sum(), np.array([p.sum() for p in parts]) / spread.sum()


def choose(form, x, y, w, held, rank):
    tried = {}
    def at(p):
        if p not in tried: tried[p] = score(*fitted(form, x, y, w, 10.0 ** p, rank), held)
        return tried[p][0]
    bias = score(*fitted(form, x, y, w, None, rank), held)
    best, least = None, bias[0]
    for p in range(2, -9, -1):
        if at(p) < least * (1 - 1e-4): best, least = p, at(p)
    if best is None: return None, bias
    while best == max(tried) and best < 6 and at(best + 1) <= at(best): best += 1
    while best == min(tried) and best > -12 and at(best - 1) < at(best) * (1 - 1e-4): best -= 1
    return 10.0 ** best, tried[best]


def case(rng, d, fit_sizes, held_sizes, rank, noise, most=1000, signal=1.0, big=0):
    mix, offset, move = rng.normal(size=(d, d)), rng.normal(size=d), rng.normal(size=d)
    B = signal * (0.3 * rng.normal(size=(d, 2)) @ rng.normal(size=(2, d)) + np.diag(0.2 * rng.normal(size=d)))
    far, wrong = 200 * rng.normal(size=d), 60 * rng.normal(size=d)

    def context(n):
        x = rng.normal(size=(n, d)) @ mix + offset
        y = x + x @ B + signal * move + noise * rng.normal(size=x.shape)
        for t in range(big):  # massive tokens, to which no map of the others holds
            x[t] = far + rng.normal(size=d)
            y[t] = x[t] + wrong + noise * rng.normal(size=d)
        return x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)

    fit, held_out = [context(n) for n in fit_sizes], [context(n) for n in held_sizes]
    join = lambda contexts: [np.concatenate(all) for all in zip(*((x, y, weights(x, y)) for x, y in contexts))]
    part, whole, held = join(fit), join(fit + held_out), kept(held_out, most)
    plain = score(np.zeros((d, d)), np.zeros(d), held)
    forms = {}
    for form in FORMS:
        share, found = choose(form, *part, held, rank)
        gains = plain[2] - found[2]
        error = np.sqrt(len(gains)) * gains.std(ddof=1) if len(gains) > 1 else None
        stays = bool(gains.sum() <= (0.1 * plain[0] if error is None else error))
        B_, b_ = fitted(form, *whole, share, rank)
        forms[form] = dict(ridge=share, error=found[0], ordinary_error=found[1], gain_stderr=error, plain=stays, B=B_.tolist(), b=b_.tolist())
    lists = lambda contexts: [[x.tolist(), y.tolist()] for x, y in contexts]
    return dict(d=d, rank=rank, most=most, fit=lists(fit), held_out=lists(held_out), massive=int(sum(massive(*c).sum() for c in fit + held_out)),
                plain_error=plain[0], plain_ordinary_error=plain[1], forms=forms)


def main(out):
    rng = np.random.default_rng(5)
    cases = [case(rng, 4, [12], [5], 1, 0.5), case(rng, 6, [22, 18], [9, 12], 2, 2.0), case(rng, 7, [15], [20, 9, 8], 3, 8.0),
             case(rng, 5, [30, 26], [14, 18], 2, 0.4, big=1), case(rng, 5, [30, 26], [40, 31], 2, 0.4, most=6, big=2),
             case(rng, 4, [14], [9, 8], 1, 1.0, signal=0), case(rng, 4, [40], [9, 8], 4, 0)]
    with open(os.path.join(out, "maps.json"), "w") as f: f.write(json.dumps(dict(cases=cases)) + "\n")
    for c in cases: print(c["massive"], {k: (v["ridge"], v["plain"]) for k, v in c["forms"].items()})


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
