#!/usr/bin/env python3
"""Writes ks.json: two-sample Kolmogorov-Smirnov tests as scipy computes them (two-sided, exact), the expectation of
support/kolmogorov.h. Made with scipy 1.17.1. usage: make_ks.py > ks.json"""
import json, random, warnings
from scipy.stats import ks_2samp

warnings.simplefilter("error")
rng = random.Random(17)
draw = {
    "same": (lambda: rng.gauss(0, 1), lambda: rng.gauss(0, 1)),
    "shifted": (lambda: rng.gauss(0, 1), lambda: rng.gauss(0.8, 1)),
    "wider": (lambda: rng.gauss(0, 1), lambda: rng.gauss(0, 2.5)),
    "apart": (lambda: rng.random(), lambda: 2 + rng.random()),
    "ties": (lambda: rng.randrange(6), lambda: rng.randrange(6)),  # an upper bound of p, which scipy gives too
}
cases = []
for n, m in [(1, 1), (2, 3), (5, 5), (9, 4), (16, 60), (64, 64), (48, 200), (64, 300)]:
    for what, (a, b) in draw.items():
        x, y = sorted(round(a(), 4) for _ in range(n)), sorted(round(b(), 4) for _ in range(m))
        try:
            r = ks_2samp(x, y, method="exact")
        except RuntimeWarning:  # scipy cannot count so many orders exactly and would approximate
            continue
        cases.append({"what": what, "a": x, "b": y, "statistic": float(r.statistic), "p": float(r.pvalue)})
print("[" + ",\n ".join(json.dumps(c) for c in cases) + "]")
