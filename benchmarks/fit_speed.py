"""CPU seconds of a Chinchilla fit with 1,000 clustered bootstrap replicates, against a plain scipy fit.

    python benchmarks/fit_speed.py [--share 0.1]

The plain fit runs scipy's L-BFGS-B with numeric gradients from the 4,500 starts of Hoffmann et al. (2203.15556,
appendix D.2), then BFGS from the optimum for each replicate. --share S runs a part S of its starts and replicates and
scales the time up. Times are CPU seconds of one thread, so that other load on the machine has little effect.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp

from tinyscale.fitting.fit import fit_law
from tinyscale.fitting.laws import find_law

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # 2404.10102, table 1
REPLICATES = 1000
COMMANDS = (240, 10_000, 1_000_000)  # points, ascending: the peak of memory is that of the largest so far
DELTA = 1e-3


def runs(points: int) -> pd.DataFrame:
    """Simulated runs: 12 sizes, `points` in all, 1 % noise."""
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(5e7, 1.6e10, 12), points // 12)
    d = np.tile(np.geomspace(1e9, 5e11, points // 12), 12)
    loss = find_law("chinchilla").loss(TRUTH, n=n, d=d) * np.exp(0.01 * rng.standard_normal(n.size))
    return pd.DataFrame({"n": n, "d": d, "loss": loss})


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def plain_objective(theta: np.ndarray, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> float:
    """Sum of Huber losses of the residuals of log loss; theta = a, b, e, alpha, beta (2203.15556, appendix D.2)."""
    a, b, e, alpha, beta = theta
    predicted = logsumexp(np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)]), axis=0)
    size = np.abs(predicted - y)
    inside = np.minimum(size, DELTA)
    return float((inside * (size - 0.5 * inside)).sum())


def plain_fit(frame: pd.DataFrame, share: float) -> tuple[float, float]:
    """CPU seconds of the plain fit, scaled up from `share`, and the objective that it reached."""
    n, d, y = (np.log(frame[name].to_numpy()) for name in ("n", "d", "loss"))
    grid = [
        np.arange(0, 26, 5),
        np.arange(0, 26, 5),
        np.arange(-1, 1.1, 0.5),
        np.arange(0, 2.1, 0.5),
        np.arange(0, 2.1, 0.5),
    ]
    starts = list(itertools.product(*grid))
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(starts), max(1, round(share * len(starts))), replace=False)

    def search() -> Any:
        found = [minimize(plain_objective, starts[i], args=(n, d, y), method="L-BFGS-B") for i in chosen]
        return min(found, key=lambda result: result.fun)

    def bootstrap() -> None:
        for _ in range(round(share * REPLICATES)):
            rows = rng.integers(0, len(y), len(y))
            minimize(plain_objective, best.x, args=(n[rows], d[rows], y[rows]), method="BFGS")

    searching, best = timed(search)
    resampling, _ = timed(bootstrap)
    print(f"  plain: search {searching / share:.1f} s, replicates {resampling / share:.1f} s, at share {share:g}")
    return (searching + resampling) / share, float(best.fun)


def whole_command(frame: pd.DataFrame) -> str:
    """What `tinyscale fit` on a CSV file takes, from the start of Python to the written plots."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        frame.to_csv(path, index=False)
        command = [
            sys.executable,
            "-c",
            "from tinyscale.cli import main; main()",
            "fit",
            str(path),
            "--results",
            folder,
        ]
        before, begun = os.times(), time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after, seconds = os.times(), time.monotonic() - begun
    used = after.children_user + after.children_system - before.children_user - before.children_system
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest child so far
    return f"{used:.2f} CPU seconds, {seconds:.2f} by the clock, at most {peak:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    share = parser.parse_args().share
    frame = runs(240)
    fit_law(runs(120), "chinchilla", draws=100)  # imports what the fit needs
    ours, found = timed(
        lambda: fit_law(frame, "chinchilla", delta=DELTA, intervals="bootstrap", draws=REPLICATES, holdout=0)
    )
    checked, _ = timed(lambda: fit_law(frame, "chinchilla", delta=DELTA, intervals="bootstrap", draws=REPLICATES))
    print(
        f"240 points, 5 parameters, objective {found.objective:.9e}, "
        f"{len(found.curve.draws)} of {REPLICATES} replicates converged"
    )
    print(f"  ours: fit and replicates {ours:.2f} s; with held-out windows and alternative laws {checked:.2f} s")
    plain, objective = plain_fit(frame, share)
    print(f"  plain objective {objective:.9e} ({objective / found.objective - 1:+.1e} against ours)")
    print(f"  ratio: {plain / ours:.0f} times")
    big = runs(100_000)
    seconds, large = timed(lambda: fit_law(big, "chinchilla"))
    print(f"{len(big)} points: {seconds:.1f} s, alpha {large.params['alpha']:.5f}, {large.method}")
    for frame in map(runs, COMMANDS):
        print(f"the whole command, {len(frame):,} points: {whole_command(frame)}", flush=True)


if __name__ == "__main__":
    main()
