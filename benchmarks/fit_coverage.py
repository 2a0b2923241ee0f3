"""Coverage of the 95 % intervals of fits, over simulated studies.

    python benchmarks/fit_coverage.py [--studies 500] [--only power-n]

Prints one row per law, shape of study and noise. Its percentages are the shares of studies whose interval contained the
true value of each parameter; for joint laws also of the exponent a of N* ~ C^a, and of the optimal N and loss at ten
times the largest budget. The last column is the share of prediction intervals that contained a new run at four times
the largest size. Studies that the fit refuses are left out.
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
# Smallest and largest value of the variable of each law; for joint laws, of each variable by its name.
RANGES = {
    "power-n": (5e4, 3e6), "power-d": (1e8, 6e9), "power-c": (3e11, 1e15), "power-t": (64, 4096), "broken": (1e5, 1e10),
    "n": (5e6, 5e8), "d": (1e8, 1e10), "width": (64, 1024), "depth": (2, 32),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A simulated study.

    configurations: one row each, `loss` without noise. truth: the true value of each estimate. noise and size_noise:
    relative standard deviations of a run and of a configuration. fit: runs -> a fit with estimates. beyond: a run
    outside the study, with its true loss.
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
        """The runs of one study, and the noise factor of the run `beyond`."""
        size = np.repeat(self.size_noise * rng.standard_normal(len(self.configurations)), self.seeds)
        runs = self.configurations.loc[np.repeat(self.configurations.index, self.seeds)].reset_index(drop=True)
        own = self.noise * rng.standard_normal(len(runs))
        beyond = np.hypot(self.noise, self.size_noise) * rng.standard_normal()
        return runs.assign(loss=runs["loss"] * np.exp(size + own)), float(np.exp(beyond))

    def row(self, studies: int) -> str:
        """The study's row of the table, shares in percent."""
        covered: list[Mapping[str, bool]] = []
        for seed in range(studies):
            runs, factor = self.simulate(np.random.default_rng(seed))
            try:
                covered.append(self._covered(self.fit(runs), factor))
            except FitError:
                continue
        shares = 100 * pd.DataFrame(covered).mean()
        new = f"{shares.pop('new'):.1f}" if "new" in shares else "-"
        noise = f"{100 * self.noise:.3g} %" + (f" + {100 * self.size_noise:.3g} % per size" if self.size_noise else "")
        counted = f"{len(covered)}" + (f" of {studies}, the others refused" if len(covered) < studies else "")
        values = ", ".join(f"{name} {share:.1f}" for name, share in shares.items())
        seeds = f" x {self.seeds} seeds" if self.seeds > 1 else ""
        return f"| {self.name} | {self.shape}{seeds} | {noise} | {counted} | {values} | {new} |"

    def _covered(self, found: Any, factor: float) -> dict[str, bool]:
        """Whether each interval contains the true value."""
        ends = {name: each.ends for name, each in found.estimates.items()}
        if isinstance(found, Fit) and self.beyond:
            follows = derived(found.curve, largest_budget(self.configurations))
            ends |= {name: each.ends for name, each in follows.items()}
            new = found.predict(**{name: self.beyond[name] for name in found.law.variables}).iloc[0]
            ends["new"] = (new["low"], new["high"])
        truth = {**self.truth, "new": self.beyond["loss"] * factor if self.beyond else np.nan}
        return {name: bool(low <= truth[name] <= high) for name, (low, high) in ends.items()}


def derived(curve: Curve, budget: float) -> dict[str, Estimate]:
    """Estimates of a, N* and L* at a budget (FLOPs); empty if the law has no compute-optimal frontier."""
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
    """All combinations of the axes' values, one row each."""
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
    """A study of a law. counts: the number of values of each variable. options: of `fit_law`."""
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
    """Runs at `sizes` sizes x `unique` numbers of unique tokens x `epochs` numbers of epochs, from 1 to 64."""
    ends = {"n": (3e6, 1e9), "u": (1e8, 1e9), "epochs": (1, 64)}
    counts = (sizes, unique, epochs)
    axes = {name: np.geomspace(*ends[name], count) for name, count in zip(ends, counts, strict=True)}
    runs = crossed(**axes)
    return runs.assign(d=runs["u"] * runs["epochs"])


def exponent_of_n() -> float:
    """a of N* ~ C^a under the true law."""
    return CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])


def of_optima(name: str, shape: str, runs: pd.DataFrame, noise: float, fit: Callable[..., Any]) -> Study:
    """A study of N*(C) and D*(C) whose true law is Chinchilla's."""
    loss = find_law("chinchilla").loss(CHINCHILLA, n=runs["n"].to_numpy(), d=runs["d"].to_numpy())
    g = frontier(Curve(find_law("chinchilla"), CHINCHILLA, np.array([list(CHINCHILLA.values())]), 0.0, 1), 1.0)
    a = exponent_of_n()
    truth = {"k_N": g["n"].iloc[0], "a": a, "k_D": g["d"].iloc[0], "b": 1 - a}
    return Study(name, shape, runs.assign(c=6 * runs["n"] * runs["d"], loss=loss), truth, noise, fit)


def budgets() -> pd.DataFrame:
    """Runs at six budgets, nine sizes around the optimum of each."""
    rows = []
    for c in np.geomspace(1e17, 1e20, 6):
        best = 0.1197 * (c / 6) ** exponent_of_n()
        n = best * np.geomspace(1 / 8, 8, 9)
        rows.append(pd.DataFrame({"n": n, "d": c / 6 / n}))
    return pd.concat(rows, ignore_index=True)


def of_tuning(setting: str, sizes: int, lengths: int, noise: float) -> Study:
    """Seven values around the best one of each size; the loss is an asymmetric bowl in the setting's logarithm."""
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


def of_settings(way: str, noise: float) -> Study:
    """Rates and batches about the best ones of 12 sizes: a grid, or as a search draws them; the bowl is lopsided.

    `diverged`: above a rate that goes with the batch the loss jumps. Exponents: 2503.04715.
    """
    rng, truth = np.random.default_rng(0), {"k": 1.79, "p": -0.713, "q": 0.307, "k_B": 0.58, "p_B": 0.0, "q_B": 0.571}
    sizes = crossed(n=np.array([6e7, 2e8, 4e8, 1e9]), d=np.array([2e9, 1e10, 1e11]))
    steps = np.log(2) * np.arange(-3, 4)
    grid = crossed(z=steps + 0.1, b=steps - 0.1)
    each = [
        pd.DataFrame(np.concatenate([rng.uniform(-2.5, 2.5, (8, 2)), rng.standard_normal((20, 2))]), columns=["z", "b"])
        if way == "draws"
        else grid
        for _ in range(len(sizes))
    ]
    runs = pd.concat([part.assign(**size) for part, (_, size) in zip(each, sizes.iterrows(), strict=True)])
    rise = 0.012 / 0.35**2 * (np.exp(0.35 * runs["z"]) - 1 - 0.35 * runs["z"])
    excess = rise + 0.006 * runs["b"] ** 2 * (1 - 0.1 * runs["b"]) - 0.4 * 0.012 * runs["z"] * runs["b"]
    excess += np.where((way == "grid, some diverged") & (runs["z"] - 0.4 * runs["b"] > 1.7), 0.25, 0.0)
    runs = runs.assign(
        loss=(1.7 + 400 * runs["n"] ** -0.34 + 410 * runs["d"] ** -0.28) * np.exp(excess),
        lr=truth["k"] * runs["n"] ** truth["p"] * runs["d"] ** truth["q"] * np.exp(runs["z"]),
        batch_tokens=truth["k_B"] * runs["d"] ** truth["q_B"] * np.exp(runs["b"]),
    )
    return Study("settings", f"12 sizes, {way}", runs.reset_index(drop=True), {**truth, "r": 0.4}, noise, fit_tuning)


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
    of_settings("grid", 0.001),
    *(of_settings(way, 0.003) for way in ("grid", "grid, some diverged", "draws")),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--only", default="", help="laws whose name starts with this")
    options = parser.parse_args()
    print("| law | study | noise | studies | parameters | new run at 4 x |\n|---|---|---|---|---|---|")
    for study in STUDIES:
        if study.name.startswith(options.only):
            print(study.row(options.studies), flush=True)


if __name__ == "__main__":
    main()
