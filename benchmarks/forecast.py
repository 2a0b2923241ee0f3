"""Coverage and error of forecasts: over simulated studies, and on tables of published runs.

    python benchmarks/forecast.py simulate [--studies 100] [--only "L(N) 6 x 3"]
    python benchmarks/forecast.py tables [FILE.csv ...] [--columns n=params,d=tokens,loss=val]

simulate: one row per study and truth. A run 3, 10, 30 and 100 times beyond the largest size of each variable is
forecast; the table gives the share of studies whose 95 % interval held it, the median width of the interval and the
median error, both in percent, and the share of studies with a warning of a bend inside the data.

tables: each table's lower 80 % of compute is fitted as `tinyscale fit` does, and its other runs are forecast. Without
files, the published tables in the folder that TINYSCALE_FITDATA names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import tinyscale as ts
from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.forecast import Z, averaged, make_forecast
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.points import read_points
from tinyscale.fitting.shape import shape_notes
from tinyscale.fitting.solve import solve

NOISE = 0.003  # relative standard deviation of a run's loss
TIMES = np.array([3.0, 10.0, 30.0, 100.0])
CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # 2404.10102, table 1
N, N_JOINT, D_JOINT = (5e4, 3e6), (5e6, 5e8), (1e8, 1e10)  # ranges of the studies
STUDIES = {"L(N) 6 x 3": (6, 3), "L(N) 8 x 1": (8, 1), "L(N, D) 6 x 6": (6, 6), "L(N, D) 12 x 20": (12, 20)}
MANY = 50  # points from which a fit is robust


def bent(x: Array, ends: tuple[float, float], truth: str) -> Array:
    """The logarithm x (n,) as a law with a constant exponent must see it to have an exponent that changes."""
    low, high = np.log(ends)
    u, span = x - low, high - low
    if truth.startswith("drift"):  # by that share over the study, and on so
        return np.asarray(x - float(truth.split()[1]) / 100 * u**2 / (2 * span))
    at = {"break inside": span / 2, "break beyond": span + np.log(5)}.get(truth, np.inf)
    return np.asarray(np.where(u < at, x, x - 0.25 * (u - at)))  # by a quarter


def study(name: str, truth: str) -> tuple[Array, Callable[[Array], Array], Array]:
    """Logarithms (k, n) of the variables, the true log loss there, and (k, 1) the largest sizes."""
    first, second = STUDIES[name]
    if "D" not in name:
        E, A, alpha = (0.0, 9.7, 0.076) if truth == "no floor" else (1.4, 60.0, 0.29)

        def of_size(x: Array) -> Array:
            return np.asarray(np.log(E + A * np.exp(-alpha * bent(x[0], N, truth))))

        return np.repeat(np.log(np.geomspace(*N, first)), second)[None], of_size, np.log([[N[1]]])
    law = find_law("chinchilla")

    def of_both(x: Array) -> Array:
        return np.log(law.loss(CHINCHILLA, n=np.exp(bent(x[0], N_JOINT, truth)), d=np.exp(bent(x[1], D_JOINT, truth))))

    axes = np.meshgrid(np.log(np.geomspace(*N_JOINT, first)), np.log(np.geomspace(*D_JOINT, second)))
    return np.stack([axis.ravel() for axis in axes]), of_both, np.log([[N_JOINT[1]], [D_JOINT[1]]])


def simulated(name: str, truth: str, studies: int) -> str:
    """A row of the table of simulations."""
    x, log_loss, largest = study(name, truth)
    law = find_law("power-n" if len(x) == 1 else "chinchilla")
    beyond = largest + np.log(TIMES)
    held, widths, errors, warned = [], [], [], []
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        y, new = (log_loss(at) + NOISE * rng.standard_normal(at.shape[1]) for at in (x, beyond))
        points = read_points(pd.DataFrame({**dict(zip("nd", np.exp(x), strict=False)), "loss": np.exp(y)}), law)
        problem = points.problem(law, np.inf if len(y) < MANY else 1e-3)
        theta = solve(problem)[0].theta[0]
        centre, sd = make_forecast(points, problem, theta, averaged(law)).log_loss(beyond)
        held.append(np.abs(new - centre) < Z * sd)
        widths.append(200 * Z * sd)
        errors.append(100 * np.abs(centre - new))
        warned.append(any("bends" in note for note in shape_notes(problem, theta)))
    shares = " / ".join(f"{100 * share:.0f}" for share in np.mean(held, axis=0))
    width, error = (" / ".join(f"{each:.1f}" for each in np.median(rows, axis=0)) for rows in (widths, errors))
    return f"| {name} | {truth} | {shares} | {width} | {error} | {100 * np.mean(warned):.0f} |"


def published(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and runs of each published table with N, D and loss, columns n, d and loss."""
    porian = pd.read_csv(folder / "porian" / "isoflop_points.csv").rename(columns={"tokens": "d"})
    for key, runs in porian.groupby(["dataset", "hparams", "warmup", "decay", "param_count", "val"]):
        yield f"porian {' '.join(map(str, key))}", runs
    olmo = pd.read_csv(folder / "olmo_ladder" / "final_evals.csv")
    names = {"non_embedding_params": "n", "tokens": "d", "c4_en_ce_mean_last5": "loss"}
    yield "olmo ladder, C4", olmo[~olmo["rerun"]].rename(columns=names)
    runs = pd.read_csv(folder / "datablations" / "parametric_fit_points.csv")
    names = {"params": "n", "tokens": "d", "val_loss": "loss"}
    yield "datablations without repeats", runs[runs["tokens"] <= 1.01 * runs["unique_tokens"]].rename(columns=names)
    gadre = pd.read_csv(folder / "gadre_overtraining" / "runs.csv")
    names = {"params": "n", "tokens": "d", "loss_c4_val": "loss"}
    for text, part in gadre.groupby("dataset"):
        yield f"gadre {text}", part.rename(columns=names)


def forecast(name: str, runs: pd.DataFrame) -> dict[str, float | str]:
    """A row of the table of tables: errors are root mean squares of log loss in percent."""
    runs = runs[["n", "d", "loss"]].astype(float).dropna()
    compute = np.log(runs["n"] * runs["d"])
    budgets = np.unique(np.round(compute, 2))[:-1]
    last = budgets[np.abs([(compute > budget + 0.01).mean() - 0.2 for budget in budgets]).argmin()]
    lower, top = runs[compute <= last + 0.01], runs[compute > last + 0.01]
    sizes = {"n": top["n"].to_numpy(), "d": top["d"].to_numpy()}
    made = ts.fit(lower, draws=100).predict(**sizes)
    alone = ts.fit(lower, "chinchilla", draws=100).predict(**sizes)
    loss = top["loss"].to_numpy()
    carried = lower["loss"][compute[lower.index] > last - 0.01].mean()
    rms = [100 * float(np.sqrt(np.mean(np.log(each / loss) ** 2))) for each in (made["loss"], alone["loss"], carried)]
    inside = [100 * float(((each["low"] < loss) & (loss < each["high"])).mean()) for each in (made, alone)]
    return {
        "table": name, "runs": len(runs), "held": len(top), "x": float(np.exp(compute.max() - last)), "error": rms[0],
        "coverage": inside[0], "width": float(100 * np.log(made["high"] / made["low"]).median()),
        "chinchilla": rms[1], "its coverage": inside[1], "carry forward": rms[2],
    }  # fmt: skip


def on_tables(tables: Iterator[tuple[str, pd.DataFrame]]) -> None:
    """Print a row per table, and their mean."""
    rows = []
    for name, runs in tables:
        try:
            rows.append(forecast(name, runs))
        except FitError as error:
            print(f"{name}: {error}")
            continue
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        print(_row(rows[-1].values()), flush=True)
    found = pd.DataFrame(rows)
    means = np.exp(np.log(found[["error", "chinchilla", "carry forward"]]).mean())
    print(
        f"\ngeometric mean error {means['error']:.2f} % (chinchilla {means['chinchilla']:.2f}, carry forward "
        f"{means['carry forward']:.2f}); coverage {found['coverage'].mean():.0f} % in the mean, least "
        f"{found['coverage'].min():.0f} %"
    )


def _row(values: object) -> str:
    shown = [each if isinstance(each, str) else f"{each:.3g}" for each in values]  # type: ignore[attr-defined]
    return "| " + " | ".join(shown) + " |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "tables"))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--columns", default="")
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--only", choices=STUDIES)
    given = parser.parse_args()
    if given.what == "tables":
        names = {column: name for name, column in (pair.split("=") for pair in given.columns.split(",") if pair)}
        files = ((path.stem, pd.read_csv(path).rename(columns=names)) for path in given.files)
        on_tables(files if given.files else published(Path(os.environ["TINYSCALE_FITDATA"])))
        return
    print("| study | truth | held (%) at 3 / 10 / 30 / 100 times | width (%) | error (%) | warned (%) |")
    print("|---|---|---|---|---|---|")
    for name in [given.only] if given.only else STUDIES:
        truths = ("the law", "no floor", "drift 7", "drift 14", "break beyond", "break inside")
        for truth in truths if "D" not in name else [each for each in truths if each != "no floor"]:
            print(simulated(name, truth, given.studies), flush=True)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
