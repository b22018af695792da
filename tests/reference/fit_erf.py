"""Coefficients of the polynomials in kernels/simd.h: the normal tail behind GELU and erf, and exp.

    python3 tests/reference/fit_erf.py        prints the C constants and the errors before rounding

Both fits are minimax: Remez' exchange moves the points where the error alternates until it alternates with equal
weighted height. Everything is in doubles; the constants are then rounded to f32.

Normal tail. Phi(-a) = exp(-a^2/2) Q(a) for a >= 0, where Q(a) = exp(a^2/2) erfc(a/sqrt 2) / 2 falls slowly from 1/2
and has no singularity, so a polynomial converges fast and no division is needed:

    Q(a) = 1/2 + a R(s),   s = a*2/TOP - 1 in [-1,1]

The 1/2 is exact so that small a keep full precision. The error is relative to Q up to a = 3 and may grow as a^8 beyond,
where Phi(-a) < 1e-3 falls off; above TOP the caller lets a stay at TOP, where Phi(-a) < 2e-8.

exp. exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2)/2, relative error."""
import math

import numpy as np

TOP = 5.5


def remez(basis, target, weight, lo, hi, rounds=20):
    """c with max over [lo,hi] of |sum c_k basis_k(x) - target(x)| / weight(x) least; and that maximum."""
    n = len(basis) + 1
    grid = np.linspace(lo, hi, 20001)
    f, w = target(grid), weight(grid)
    b = np.stack([g(grid) for g in basis], axis=1)
    at = np.round((1 - np.cos(np.pi * (np.arange(n) + 0.5) / n)) / 2 * (len(grid) - 1)).astype(int)
    for _ in range(rounds):
        sign = (-1.0) ** np.arange(n)
        c = np.linalg.solve(np.hstack([b[at], (sign * w[at])[:, None]]), f[at])[:-1]
        e = (b @ c - f) / w
        big = np.flatnonzero(np.abs(e) > 1e-3 * np.abs(e).max())
        runs = np.split(big, np.flatnonzero(np.diff(np.sign(e[big]))) + 1)
        peaks = [run[np.argmax(np.abs(e[run]))] for run in runs]    # one per run of equal sign
        while len(peaks) > n:                       # more than needed: drop the lower end
            peaks.pop(0 if abs(e[peaks[0]]) < abs(e[peaks[-1]]) else -1)
        if len(peaks) < n:
            break
        at = np.array(peaks)
    return c, np.abs(e).max()


def show(name, c, error):
    print(f"{name}: weighted error {error:.2g} before rounding")
    for k, v in enumerate(c):
        print(f"    {k:2d}  {float(np.float32(v)).hex():>24s}f  {v:.9e}")


def tail(degree=14):
    q = np.vectorize(lambda a: 0.5 * math.exp(a * a / 2) * math.erfc(a / math.sqrt(2)))
    s = lambda a: a * (2 / TOP) - 1
    basis = [lambda a, k=k: a * np.cos(k * np.arccos(np.clip(s(a), -1, 1))) for k in range(degree)]
    c, error = remez(basis, lambda a: q(a) - 0.5, lambda a: q(a) * (1 + (a / 3) ** 8), 1e-3, TOP)
    show("R(s), normal tail", np.polynomial.chebyshev.cheb2poly(c), error)


def exponential(degree=6):
    basis = [lambda r, k=k: r ** (k + 2) for k in range(degree - 1)]
    c, error = remez(basis, lambda r: np.exp(r) - 1 - r, np.exp, -math.log(2) / 2, math.log(2) / 2)
    show("P(r), exp", c, error)


tail()
exponential()
