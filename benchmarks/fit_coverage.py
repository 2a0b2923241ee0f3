"""How often the 95 % intervals of a fit hold the truth, over simulated studies.

    python benchmarks/fit_coverage.py [--studies 500] [--only power-n]

Prints one row a law, shape of study and noise: the share of studies whose interval held each parameter, for joint laws
also the exponent a of N* ~ C^a and the best N and loss at ten times the largest budget, and the share whose prediction
interval held a new run at four times the largest size. A study that the fit refuses counts in none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.errors import FitError
from tinyscale.fitting import Curve, Fit, exponents, find_law, fit_envelope, fit_isoflop, fit_law, fit_tuning, frontier
from tinyscale.fitting.estimate import Estimate

CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # 2404.10102, table 1
TRUTHS = {
    "power-n": {"E": 1.4, "A": 60.0, "alpha": 0.29},
    "power-d": {"E": 1.9, "A": 2085.43, "alpha": 0.3658},
    "power-c": {"E": 1.4, "A": 126.0, "alpha": 0.147},
    "power-t": {"E": 2.5, "A": 6.0, "alpha": 0.5},
    "power-n-no-floor": {"A": 9.7, "alpha": 0.076},
    "power-d-no-floor": {"A": 14.0, "alpha": 0.095},
    "power-c-no-floor": {"A": 21.0, "alpha": 0.05},
    "chinchilla": CHINCHILLA,
    "tied": {"E": 1.8172, "A": 482.01, "B": 1500.0, "alpha": 0.35},
    "kaplan": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "gamma": {**CHINCHILLA, "gamma": 0.8},
    "data-constrained": {**CHINCHILLA, "R_N": 5.31, "R_D": 15.39},
    "broken": {"E": 1.5, "A": 60.0, "c0": 0.3, "c1": -0.2, "d": 3e7, "f": 0.3},
    "width-depth": {"E": 1.8, "A": 80.0, "B": 3.0, "alpha": 0.8, "beta": 0.9},
}
# Smallest and largest of each variable; those of joint laws under the variables' names.
RANGES = {
    "power-n": (5e4, 3e6), "power-d": (1e8, 6e9), "power-c": (3e11, 1e15), "power-t": (64, 4096), "broken": (1e5, 1e10),
    "n": (5e6, 5e8), "d": (1e8, 1e10), "width": (64, 1024), "depth": (2, 32),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Configurations (one row each, `loss` without noise), seeds, noise of a run and of a configuration as shares.

    fit: runs -> what has the intervals; truth: what they should hold; beyond: a run outside the study, with its loss.
    """

    name: str
    shape: str
    configurations: pd.DataFrame
    truth: Mapping[str, float]
    noise: float
    fit: Callable[[pd.DataFrame], Any]
    seeds: int = 1
    size_noise: float = 0.0
    beyond: Mapping[str, float] | None = None

    def simulate(self, rng: np.random.Generator) -> tuple[pd.DataFrame, float]:
        """The runs of one study, and the factor of noise on the run beyond."""
        size = np.repeat(self.size_noise * rng.standard_normal(len(self.configurations)), self.seeds)
        runs = self.configurations.loc[np.repeat(self.configurations.index, self.seeds)].reset_index(drop=True)
        own = self.noise * rng.standard_normal(len(runs))
        beyond = np.hypot(self.noise, self.size_noise) * rng.standard_normal()
        return runs.assign(loss=runs["loss"] * np.exp(size + own)), float(np.exp(beyond))

    def row(self, studies: int) -> str:
        """The table's row: shares in percent."""
        held: list[Mapping[str, bool]] = []
        for seed in range(studies):
            runs, factor = self.simulate(np.random.default_rng(seed))
            try:
                held.append(self._held(self.fit(runs), factor))
            except FitError:
                continue
        shares = 100 * pd.DataFrame(held).mean()
        new = f"{shares.pop('new'):.1f}" if "new" in shares else "-"
        noise = f"{100 * self.noise:.3g} %" + (f" + {100 * self.size_noise:.3g} % per size" if self.size_noise else "")
        counted = f"{len(held)}" + (f" of {studies}, the others refused" if len(held) < studies else "")
        values = ", ".join(f"{name} {share:.1f}" for name, share in shares.items())
        seeds = f" x {self.seeds} seeds" if self.seeds > 1 else ""
        return f"| {self.name} | {self.shape}{seeds} | {noise} | {counted} | {values} | {new} |"

    def _held(self, found: Any, factor: float) -> dict[str, bool]:
        """Whether each interval holds the truth."""
        ends = {name: each.ends for name, each in found.estimates.items()}
        if isinstance(found, Fit) and self.beyond:
            follows = derived(found.curve, largest_budget(self.configurations))
            ends |= {name: each.ends for name, each in follows.items()}
            new = found.predict(**{name: self.beyond[name] for name in found.law.variables}).iloc[0]
            ends["new"] = (new["low"], new["high"])
        truth = {**self.truth, "new": self.beyond["loss"] * factor if self.beyond else np.nan}
        return {name: bool(low <= truth[name] <= high) for name, (low, high) in ends.items()}


def derived(curve: Curve, budget: float) -> dict[str, Estimate]:
    """a, N* and L* at a budget; empty without a frontier."""
    if not curve.law.has_frontier:
        return {}
    best = frontier(curve, budget).iloc[0]
    named = {"N*": "n", "L*": "loss"}
    ends = {symbol: [best[f"{name}{end}"] for end in ("", "_low", "_high")] for symbol, name in named.items()}
    return {"a": exponents(curve)["a"], **{symbol: Estimate(*each) for symbol, each in ends.items()}}


def largest_budget(runs: pd.DataFrame) -> float:
    """Ten times the FLOPs of the largest run."""
    return 60.0 * float(runs["n"].max() * runs["d"].max()) if {"n", "d"} <= set(runs) else np.nan


def crossed(**axes: np.ndarray) -> pd.DataFrame:
    """Every combination of the axes' values."""
    return pd.DataFrame(list(product(*axes.values())), columns=list(axes))


def of_law(
    law: str,
    *counts: int,
    noise: float = 0.005,
    seeds: int = 1,
    size_noise: float = 0.0,
    configurations: pd.DataFrame | None = None,
    name: str = "",
    **options: Any,
) -> Study:
    """A study of a law of the catalogue on that many values of each variable. options: of `fit_law`."""
    form, truth = find_law(law), TRUTHS[law]
    if configurations is None:
        ends = [RANGES.get(law.removesuffix("-no-floor"), RANGES.get(v)) for v in form.variables]
        configurations = crossed(
            **{v: np.geomspace(*r, k) for v, r, k in zip(form.variables, ends, counts, strict=True)}
        )
    beyond = {v: 4.0 * float(configurations[v].max()) for v in form.variables}
    exact = Curve(form, truth, np.array([list(truth.values())]), 0.0, 1)
    follows = derived(exact, largest_budget(configurations))
    return Study(
        name=name or law,
        shape=" x ".join(map(str, counts)) + " sizes",
        configurations=configurations.assign(
            loss=form.loss(truth, **{v: configurations[v].to_numpy() for v in form.variables})
        ),
        truth={**truth, **{name: each.value for name, each in follows.items()}},
        noise=noise,
        fit=partial(fit_law, law=form, holdout=0, draws=400, **options),
        seeds=seeds,
        size_noise=size_noise,
        beyond={**beyond, "loss": float(form.loss(truth, **beyond))},
    )


def repeats(sizes: int, unique: int, epochs: int) -> pd.DataFrame:
    """Sizes x counts of unique tokens x epochs of them, from 1 to 64."""
    ends = {"n": (3e6, 1e9), "u": (1e8, 1e9), "epochs": (1, 64)}
    counts = (sizes, unique, epochs)
    axes = {name: np.geomspace(*ends[name], count) for name, count in zip(ends, counts, strict=True)}
    runs = crossed(**axes)
    return runs.assign(d=runs["u"] * runs["epochs"])


def exponent_of_n() -> float:
    """a of N* ~ C^a under the true law."""
    return CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])


def of_optima(name: str, shape: str, runs: pd.DataFrame, noise: float, fit: Callable[..., Any]) -> Study:
    """A study of N*(C) and D*(C) where Chinchilla's law is the truth."""
    loss = find_law("chinchilla").loss(CHINCHILLA, n=runs["n"].to_numpy(), d=runs["d"].to_numpy())
    g = frontier(Curve(find_law("chinchilla"), CHINCHILLA, np.array([list(CHINCHILLA.values())]), 0.0, 1), 1.0)
    a = exponent_of_n()
    truth = {"k_N": g["n"].iloc[0], "a": a, "k_D": g["d"].iloc[0], "b": 1 - a}
    return Study(name, shape, runs.assign(c=6 * runs["n"] * runs["d"], loss=loss), truth, noise, fit)


def budgets() -> pd.DataFrame:
    """Six budgets, nine sizes around the best of each."""
    rows = []
    for c in np.geomspace(1e17, 1e20, 6):
        best = 0.1197 * (c / 6) ** exponent_of_n()
        n = best * np.geomspace(1 / 8, 8, 9)
        rows.append(pd.DataFrame({"n": n, "d": c / 6 / n}))
    return pd.concat(rows, ignore_index=True)


def of_tuning(setting: str, sizes: int, lengths: int, noise: float) -> Study:
    """Seven settings around the best one of each size, the loss a lopsided bowl in the setting's logarithm."""
    runs = crossed(n=np.geomspace(1e6, 1e9, sizes), d=np.geomspace(1e8, 1e10, lengths), z=np.linspace(-1.4, 1.8, 7))
    truth = {"k": 1.79, "p": -0.713, "q": 0.307}  # 2503.04715
    if lengths == 1:
        truth = {"k": 1.8, "p": -0.4}
        runs["d"] = 20 * runs["n"]
    best = truth["k"] * runs["n"] ** truth["p"] * runs["d"] ** truth.get("q", 0.0)
    loss = (2 + 50 * runs["n"] ** -0.3) * (1 + 0.01 * runs["z"] ** 2 + 0.001 * runs["z"] ** 3)
    column = {"lr": "lr", "batch": "batch_tokens"}[setting]
    shape = f"{sizes} sizes" + (f" x {lengths} token counts" if lengths > 1 else "") + " x 7 settings"
    runs = runs.assign(**{column: best * np.exp(runs["z"]), "loss": loss})
    return Study(setting, shape, runs, truth, noise, partial(fit_tuning, law=setting))


STUDIES = (
    *(of_law("power-n", sizes, seeds=seeds) for sizes, seeds in ((5, 2), (5, 3), (6, 1), (6, 3), (8, 3))),
    *(of_law("power-n", 6, seeds=3, noise=noise) for noise in (0.002, 0.010)),
    of_law("power-n", 6, seeds=3, noise=0.003, size_noise=0.003),
    *(of_law(f"power-{v}", 6, seeds=3) for v in "dct"),
    *(of_law(f"power-{v}-no-floor", 6, seeds=3) for v in "ndc"),
    *(of_law("power-n", sizes, seeds=3, intervals="wild", name="power-n, wild") for sizes in (5, 6, 8)),
    *(of_law("power-n", sizes, seeds=3, intervals="bootstrap", name="power-n, bootstrap") for sizes in (6, 12)),
    *(of_law("chinchilla", side, side) for side in (4, 5, 6, 8)),
    of_law("chinchilla", 12, 20, noise=0.010),
    of_law("chinchilla", 6, 6, intervals="wild", name="chinchilla, wild"),
    *(of_law("tied", side, side) for side in (4, 6)),
    *(of_law("kaplan", side, side) for side in (5, 6)),
    *(of_law("gamma", side, side) for side in (6, 8)),
    *(of_law("width-depth", side, side) for side in (5, 6)),
    *(
        of_law("data-constrained", *counts, configurations=repeats(*counts))
        for counts in ((4, 2, 6), (5, 3, 7))
    ),
    *(of_law("broken", sizes, seeds=3) for sizes in (12, 16)),
    *(of_optima("isoflop", "6 budgets x 9 sizes", budgets(), noise, fit_isoflop) for noise in (0.001, 0.003)),
    of_optima("isoflop, parabola", "6 budgets x 9 sizes", budgets(), 0.003, partial(fit_isoflop, degree=2)),
    *(
        of_optima("envelope", "12 x 20 sizes", crossed(n=np.geomspace(5e6, 5e8, 12), d=np.geomspace(1e8, 1e10, 20)),
                  noise, fit_envelope)
        for noise in (0.001, 0.005)
    ),
    *(of_tuning("lr", 6, 1, noise) for noise in (0.0005, 0.002)),
    of_tuning("lr", 4, 3, 0.002),
    of_tuning("batch", 6, 1, 0.002),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--only", default="", help="laws whose name starts so")
    options = parser.parse_args()
    print("| law | study | noise | studies | parameters | new run at 4 x |\n|---|---|---|---|---|---|")
    for study in STUDIES:
        if study.name.startswith(options.only):
            print(study.row(options.studies), flush=True)


if __name__ == "__main__":
    main()
