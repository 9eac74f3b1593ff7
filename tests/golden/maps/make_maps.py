"""Makes maps.json: small fits of aligned cuts as numpy makes them from the hidden states themselves, by augmented least squares (lstsq), which
shares nothing with normal equations.

    python make_maps.py [OUT]        OUT: this folder
"""
import json, os, sys
import numpy as np

GRID = [10.0 ** p for p in range(2, -9, -1)]


def ridge(x, r, lam):
    """Centred; minimises |r - x B - b|^2 + lam |B|^2 by rows appended to the data."""
    mx, mr = x.mean(0), r.mean(0)
    a = np.vstack([x - mx, np.sqrt(lam) * np.eye(x.shape[1])])
    B = np.linalg.lstsq(a, np.vstack([r - mr, np.zeros((x.shape[1], r.shape[1]))]), rcond=None)[0]
    return B, mr - mx @ B


def error(B, b, x, r):
    y = x + r
    return ((r - x @ B - b) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


def forms(x, r, lam, rank):
    mx, mr = x.mean(0), r.mean(0)
    xc, rc = x - mx, r - mr
    full, _ = ridge(x, r, lam)
    s = (xc * rc).sum(0) / ((xc ** 2).sum(0) + lam)
    rest, _ = ridge(x, rc - xc * s, lam)
    # Reduced-rank regression: the best directions of what the ridge fit predicts, in its own metric.
    a = np.vstack([xc, np.sqrt(lam) * np.eye(x.shape[1])])
    v = np.linalg.svd(a @ rest, full_matrices=False)[2][:rank].T
    low = rest @ v @ v.T + np.diag(s)
    return {name: (B, mr - mx @ B) for name, B in (("diagonal", np.diag(s)), ("low-rank", low), ("full", full))}


def case(rng, d, n, held, rank, noise):
    mix = rng.normal(size=(d, d))
    x = rng.normal(size=(n + held, d)) @ mix + rng.normal(size=d)
    B = 0.3 * rng.normal(size=(d, 2)) @ rng.normal(size=(2, d)) + np.diag(0.2 * rng.normal(size=d))
    r = x @ B + rng.normal(size=d) + noise * rng.normal(size=x.shape)
    fx, fr, hx, hr = x[:n], r[:n], x[n:], r[n:]
    variance = ((fx - fx.mean(0)) ** 2).mean()
    scores = [error(*ridge(fx, fr, g * variance * n), hx, hr) for g in GRID]
    best = GRID[int(np.argmin(scores))]
    assert sorted(scores)[1] - min(scores) > 1e-9 * min(scores), "two ridges are as good"
    part = forms(fx, fr, best * variance * n, rank)
    whole = forms(x, r, best * ((x - x.mean(0)) ** 2).mean() * len(x), rank)
    y = hx + hr
    return dict(d=d, rank=rank, fit=[fx.tolist(), fr.tolist()], held_out=[hx.tolist(), hr.tolist()], ridge=best,
                plain_error=float((hr ** 2).sum() / ((y - y.mean(0)) ** 2).sum()),
                forms={k: dict(B=B.tolist(), b=b.tolist(), error=float(error(*part[k], hx, hr))) for k, (B, b) in whole.items()})


def main(out):
    rng = np.random.default_rng(5)
    cases = [case(rng, 4, 12, 5, 1, 0.5), case(rng, 6, 40, 9, 2, 2.0), case(rng, 7, 15, 20, 3, 8.0)]
    with open(os.path.join(out, "maps.json"), "w") as f: f.write(json.dumps(dict(cases=cases)) + "\n")
    print([c["ridge"] for c in cases])


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
