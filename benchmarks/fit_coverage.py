"""How often the 95 % intervals of a fit hold the truth, over simulated studies.

    python benchmarks/fit_coverage.py [--studies 500] [--only power-n]

Prints one row a law, shape of study and noise: the share of studies whose interval held each parameter, and the share
whose prediction interval held a new run at four times the largest size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tinyscale.fitting.fit import fit_law
from tinyscale.fitting.isoflop import fit_isoflop
from tinyscale.fitting.laws import find_law

TRUTHS = {
    "power-n": {"E": 1.4, "A": 60.0, "alpha": 0.29},
    "chinchilla": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    "tied": {"E": 1.8172, "A": 482.01, "B": 1500.0, "alpha": 0.35},
    "kaplan": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
}


@dataclass(frozen=True)
class Study:
    """Sizes, tokens a size (1: at 20 a parameter), seeds, noise of a run and of a size as shares of the loss."""

    law: str
    sizes: int
    tokens: int
    seeds: int
    noise: float
    size_noise: float = 0.0

    def frame(self, rng: np.random.Generator) -> tuple[pd.DataFrame, dict[str, float]]:
        """A simulated study, and one run outside it, with its own noise."""
        low, high = (5e4, 3e6) if self.law == "power-n" else (5e6, 5e8)
        sizes = np.geomspace(low, high, self.sizes)
        n = np.repeat(sizes, self.tokens)
        d = 20 * n if self.tokens == 1 else np.tile(np.geomspace(20 * low, 20 * high, self.tokens), self.sizes)
        loss = self.loss(n, d) * np.exp(self.size_noise * rng.standard_normal(n.size))
        rows = pd.DataFrame({"n": n, "d": d, "loss": loss}).loc[np.repeat(np.arange(n.size), self.seeds)]
        noise = rng.standard_normal(len(rows) + 1) * self.noise
        beyond = {"n": 4 * high, "d": 80 * high}
        beyond["loss"] = float(self.loss(**beyond)) * float(np.exp(noise[-1] + self.size_noise * rng.standard_normal()))
        return rows.assign(loss=rows["loss"] * np.exp(noise[:-1])).reset_index(drop=True), beyond

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """The true loss."""
        variables = {"n": n, "d": d}
        law = find_law(self.law)
        return law.loss(TRUTHS[self.law], **{name: variables[name] for name in law.variables})


STUDIES = (
    Study("power-n", 5, 1, 2, 0.005),
    Study("power-n", 5, 1, 3, 0.005),
    Study("power-n", 6, 1, 1, 0.005),
    Study("power-n", 6, 1, 3, 0.002),
    Study("power-n", 6, 1, 3, 0.005),
    Study("power-n", 6, 1, 3, 0.010),
    Study("power-n", 8, 1, 3, 0.005),
    Study("power-n", 6, 1, 3, 0.003, 0.003),
    Study("chinchilla", 4, 4, 1, 0.005),
    Study("chinchilla", 5, 5, 1, 0.005),
    Study("chinchilla", 6, 6, 1, 0.005),
    Study("chinchilla", 8, 8, 1, 0.005),
    Study("chinchilla", 12, 20, 1, 0.010),
    Study("tied", 4, 4, 1, 0.005),
    Study("tied", 6, 6, 1, 0.005),
    Study("kaplan", 5, 5, 1, 0.005),
)


def covered(study: Study, studies: int) -> tuple[dict[str, float], float]:
    """Share of studies whose intervals hold each parameter, and whose prediction interval holds the run outside."""
    hits, predicted, truth = dict.fromkeys(TRUTHS[study.law], 0), 0, TRUTHS[study.law]
    for seed in range(studies):
        frame, beyond = study.frame(np.random.default_rng(seed))
        found = fit_law(frame, study.law, holdout=0, seed=seed, draws=400)
        for name in hits:
            low, high = found.interval(name)
            hits[name] += low <= truth[name] <= high
        row = found.predict(**{name: beyond[name] for name in found.law.variables}).iloc[0]
        predicted += row["low"] <= beyond["loss"] <= row["high"]
    return {name: hit / studies for name, hit in hits.items()}, predicted / studies


def isoflop_covered(studies: int, noise: float) -> tuple[float, float, float]:
    """Share of intervals that hold the exponent a of N*(C), for parabola and cubic, and the cubic's mean error."""
    truth = TRUTHS["chinchilla"]
    a = truth["beta"] / (truth["alpha"] + truth["beta"])
    hits, errors = {2: 0, 3: 0}, []
    law = find_law("chinchilla")
    g = (truth["alpha"] * truth["A"] / (truth["beta"] * truth["B"])) ** (1 / (truth["alpha"] + truth["beta"]))
    for seed in range(studies):
        rng, rows = np.random.default_rng(seed), []
        for c in np.geomspace(1e17, 1e20, 6):
            n = g * (c / 6) ** a * np.geomspace(1 / 8, 8, 9)
            d = c / 6 / n
            loss = law.loss(truth, n=n, d=d) * np.exp(noise * rng.standard_normal(9))
            rows.append(pd.DataFrame({"n": n, "d": d, "c": c, "loss": loss}))
        for degree in hits:
            found = fit_isoflop(pd.concat(rows), degree=degree)
            low, high = found.interval("a")
            hits[degree] += low <= a <= high
        errors.append(found.params["a"] - a)
    return hits[2] / studies, hits[3] / studies, float(np.mean(errors))


def lines(studies: int, only: str | None) -> Iterator[str]:
    """The table, a row at a time."""
    yield f"{studies} studies a row; share of 95 % intervals that hold the truth"
    yield "| law | study | noise | parameters | new run at 4 x |"
    yield "|---|---|---|---|---|"
    for study in STUDIES:
        if only in (None, study.law):
            parameters, new = covered(study, studies)
            shape = f"{study.sizes} sizes" + (f" x {study.tokens} token counts" if study.tokens > 1 else "")
            noise = f"{100 * study.noise:.1f} %"
            noise += f" + {100 * study.size_noise:.1f} % a size" if study.size_noise else ""
            shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in parameters.items())
            yield f"| {study.law} | {shape} x {study.seeds} seeds | {noise} | {shares} | {100 * new:.1f} |"
    if only in (None, "isoflop"):
        for noise in (0.001, 0.003):
            parabola, cubic, error = isoflop_covered(studies, noise)
            shares = f"a {100 * cubic:.1f} (parabola {100 * parabola:.1f}; mean error {error:+.4f})"
            yield f"| isoflop | 6 budgets x 9 sizes | {100 * noise:.1f} % | {shares} | - |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--only", help="one law, or isoflop")
    options = parser.parse_args()
    for line in lines(options.studies, options.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
