"""Tables of runs for fits: made from a known law, or published ones, which lie outside the repository for their size
and licences."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import ROOT
from tinyscale.fitting.laws import Law, find_law

FITDATA = Path(os.environ.get("TINYSCALE_FITDATA", ROOT.parent / "shared" / "fitdata"))

TRUE = {"E": 1.4, "A": 60.0, "alpha": 0.29}
HOFFMANN = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # as refitted in 2404.10102
JOINT = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
TRUTHS = {
    "chinchilla": JOINT,
    "tied": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35},
    "gamma": {**JOINT, "gamma": 0.8},
    "kaplan": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "data-constrained": {**JOINT, "R_N": 5.3, "R_D": 15.4},
    "broken": {"E": 1.5, "A": 60.0, "c0": 0.3, "c1": -0.2, "d": 3e7, "f": 0.3},
    "farseer": {
        **{"b1": -0.77, "a1": -0.15, "c1": 0.12, "b2": 7.7, "a2": -1.4, "c2": -0.1},
        **{"b3": -0.4, "a3": -0.08, "c3": 0.17},
    },
    "distilled": {"E": 1.5, "A": 60.0, "B": 600.0, "alpha": 0.3, "beta": 0.4, "gamma": 1.0, "rho": 2.0, "h": 0.1},
    "features": {"alpha": -0.42, "b_k": 0.24, "b_n": -0.027, "g": -0.038, "zeta": -1.32, "eta": -0.096},
    "bits": {"C": 0.06, "gN": 0.34, "gD": 0.5, "gP": 0.7},  # near those of 2411.04330
    "bits-n": {"C": 50.0, "gN": 0.34, "gP": 0.7},
    "bits-d": {"C": 0.003, "gD": 0.5, "gP": 0.7},
    "bits-alone": {"C": 3.0, "gP": 0.7},
    "transfer": {**JOINT, "tau": 0.2},
    "languages": {**JOINT, "phi": 0.11, "psi": -0.04},  # 2510.22037
    "width-depth": {"E": 1.8, "A": 80.0, "B": 3.0, "alpha": 0.8, "beta": 0.9},
}


def published(name: str) -> pd.DataFrame:
    """A published table; the test is skipped where it is absent."""
    path = FITDATA / name
    if not path.exists():
        pytest.skip(f"the published table {name} is not here; point TINYSCALE_FITDATA at the folder that holds it")
    return pd.read_csv(path)


def runs_of_sizes(sizes: int = 6, seeds: int = 3, sd: float = 0.005, seed: int = 0) -> pd.DataFrame:
    """Final points at 20 tokens a parameter, log-normal noise of `sd` in every run."""
    n = np.repeat(np.geomspace(5e4, 3e6, sizes), seeds)
    noise = sd * np.random.default_rng(seed).standard_normal(n.size)
    loss = (TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"]) * np.exp(noise)
    return pd.DataFrame(
        {"n_non_embedding": n, "tokens": 20 * n, "val_loss": loss, "seed": np.tile(range(seeds), sizes)}
    )


def runs_by_rate(seeds: int = 2) -> pd.DataFrame:
    """Losses at seven rates of four sizes, lowest at 0.2 N^-0.25."""
    sizes, rates = (1e4, 4e4, 1.6e5, 6e5), 2.0 ** np.arange(-10, -3)
    noise = np.random.default_rng(0).standard_normal((len(sizes), len(rates), seeds))
    cells = itertools.product(enumerate(sizes), enumerate(rates), range(seeds))
    rows = [
        {
            "n": n,
            "d": 20 * n,
            "lr": lr,
            "loss": 3 + 0.06 * np.log(lr / (0.2 * n**-0.25)) ** 2 + 0.005 * noise[i, j, seed],
        }
        for (i, n), (j, lr), seed in cells
    ]
    return pd.DataFrame(rows)


def grid_of(law: Law) -> pd.DataFrame:
    """A grid of the law's variables over two decades each, without noise."""
    ranges = {"width": (64, 4096), "depth": (2, 64), "t": (64, 8192), "bits": (2, 9)}
    ranges |= {"latents": (2e3, 5e5), "active": (32, 512), "teacher": (1.8, 3.6), "languages": (1, 50)}
    axes = [np.geomspace(*ranges.get(name, (1e6, 1e9)), 24 if len(law.variables) == 1 else 7) for name in law.variables]
    columns = dict(zip(law.variables, (axis.ravel() for axis in np.meshgrid(*axes)), strict=True))
    default = {"E": 1.5, "A": 60.0, "alpha": 0.3}
    truth = TRUTHS.get(law.name, {name: default[name] for name in law.params if name in default})
    return pd.DataFrame({**columns, "loss": law.loss(truth, **columns)})


def simulated(sd: float, seed: int = 0) -> pd.DataFrame:
    """240 runs as in 2404.10102: 12 sizes from 50M to 16B, 20 token counts each, log-normal noise."""
    n = np.repeat(np.geomspace(5e7, 1.6e10, 12), 20)
    d = np.tile(np.geomspace(1e9, 5e11, 20), 12)
    loss = find_law("chinchilla").loss(HOFFMANN, n=n, d=d)
    return pd.DataFrame({"n": n, "d": d, "loss": loss * np.exp(sd * np.random.default_rng(seed).standard_normal(240))})
