"""The best mixture of texts: each text's loss as a law of the shares, and the shares at which their mean is least.

A token of part j is worth tau_tj tokens of text t, and the loss of t falls as a power of these effective tokens (the
effective data of ATLAS, Longpre et al. 2025, 2510.22037, at one N and D). As a function of the shares each loss is
convex, so that the best mixture is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from tinyscale.errors import FitError
from tinyscale.fitting.arrays import Array
from tinyscale.fitting.estimate import Estimate
from tinyscale.fitting.laws.optima import MIXTURE
from tinyscale.fitting.optima import Optima
from tinyscale.fitting.points import SAME_BUDGET, exact_copies
from tinyscale.formatting import compact

SHARE, LOSS = "share_of_", "loss_of_"  # columns: with the name of a part, and with that of a text that is scored
REFITS = 100  # with random weights of the runs, for intervals (the Bayesian bootstrap, Rubin 1981)
FOLDS = 5
STARTS = (0.1, 0.3)  # exponents beta
TINY = 1e-12  # of effective tokens: a text that no part is worth anything for has a loss all the same
ENDS = (2.5, 97.5)


def fit_mixture(
    frame: pd.DataFrame, *, columns: Mapping[str, str] | None = None, given: Mapping[str, float] | None = None
) -> Optima:
    """L_t = E_t + B_t (sum_j tau_tj p_j)^-beta_t, tau >= 0, of each text t, and the best shares p for their mean.

    frame: finished runs of one size and one number of tokens, with their `share_of_NAME` of each part and the
    `loss_of_NAME` of each text; a run without a text's loss is left out of its law. given: shares whose regret is asked
    for; left out, equal ones. The estimates are the best shares; derived: the mean loss there, and how far it is below
    that of the given mixture and of the best one that was tried. FitError on fewer runs than a text has parameters, and
    one, and where N or D vary.
    """
    frame = frame[~exact_copies(frame)]
    parts = [str(name).removeprefix(SHARE) for name in frame if str(name).startswith(SHARE)]
    texts = [str(name).removeprefix(LOSS) for name in frame if str(name).startswith(LOSS)]
    if len(parts) < 2 or not texts:
        raise FitError(
            f"the law of mixtures needs columns {SHARE}NAME of two parts or more and {LOSS}NAME: runs on mixtures"
        )
    _refuse_sizes(frame, columns or {})
    shares = frame[[SHARE + name for name in parts]].fillna(0.0).to_numpy(float)
    shares = shares / shares.sum(axis=1, keepdims=True)
    losses = {text: frame[LOSS + text].to_numpy(float) for text in texts}
    laws = {text: _fit(*_runs_of(text, shares, loss)) for text, loss in losses.items()}
    asked = np.array([(given or dict.fromkeys(parts, 1.0)).get(name, 0.0) for name in parts])
    tried = min(shares, key=lambda mixture: _mean(laws, mixture)[0])
    found = _optimum(laws, asked / asked.sum(), tried)
    rng = np.random.default_rng(0)
    refits = []
    for _ in range(REFITS):
        weight = rng.exponential(size=len(frame))
        again = {text: _fit(*_runs_of(text, shares, losses[text], weight), start=law) for text, law in laws.items()}
        refits.append(_optimum(again, asked / asked.sum(), tried))
    low, high = np.percentile(refits, ENDS, axis=0)
    names = [*(SHARE + name for name in parts), "loss", "regret_given" if given else "regret_equal", "regret_tried"]
    estimates = {name: Estimate(*map(float, each)) for name, *each in zip(names, found, low, high, strict=True)}
    table = pd.DataFrame([_row(text, law, parts) for text, law in laws.items()])
    return Optima(
        law=MIXTURE,
        formula="L_t = E_t + B_t (sum_j tau_tj p_j)^-beta_t",
        estimates=MappingProxyType({name: estimates[name] for name in names[: len(parts)]}),
        table=table.assign(rms=[_rms(laws[text], shares, losses[text]) for text in texts], refused=""),
        runs=frame.reset_index(drop=True),
        columns=MappingProxyType({}),
        objective={"value": _total(laws, shares, losses), "kind": "least squares on log loss, of each text"},
        dof=len(frame) - len(parts) - 2,
        held_out=None,
        warnings=(_held_out(shares, losses),),
        derived=MappingProxyType({name: estimates[name] for name in names[len(parts) :]}),
        method="bootstrap",
    )


def _refuse_sizes(frame: pd.DataFrame, columns: Mapping[str, str]) -> None:
    for name, column in {"N": columns.get("n", "n_non_embedding"), "D": columns.get("d", "tokens")}.items():
        if column in frame and frame[column].max() > frame[column].min() * (1 + SAME_BUDGET):
            ends = f"{compact(frame[column].min())} to {compact(frame[column].max())}"
            raise FitError(f"the law of mixtures is of one N and D, and {name} goes from {ends}: fit the runs of one")


def _runs_of(text: str, shares: Array, loss: Array, weight: Array | None = None) -> tuple[Array, Array, Array]:
    """Shares, log loss and weight of the runs in which the text was scored."""
    there = np.isfinite(loss) & (loss > 0)
    if there.sum() < shares.shape[1] + 3:
        raise FitError(
            f"the law of mixtures needs {shares.shape[1] + 3} runs with a loss of {text} and has {there.sum()}: add "
            "mixtures"
        )
    weight = np.ones(len(loss)) if weight is None else weight
    return shares[there], np.log(loss[there]), weight[there]


def _fit(shares: Array, y: Array, weight: Array, start: Array | None = None) -> Array:
    """E, beta and B^(-1/beta) tau of each part, [2 + parts]: the loss is E + (shares @ rest)^-beta."""
    n_parts, root = shares.shape[1], np.sqrt(weight)

    def residuals(theta: Array) -> Array:
        return np.asarray(root * (np.log(predicted(theta, shares)) - y))

    def slopes(theta: Array) -> Array:
        beta, effective = theta[1], shares @ theta[2:] + TINY
        power = effective**-beta
        columns = [np.ones_like(y), -power * np.log(effective), *(-beta * power / effective * shares.T)]
        return np.asarray((root / (theta[0] + power) * np.array(columns)).T)

    level = np.exp(y)
    starts = [np.r_[level.min() / 2, beta, np.full(n_parts, (level.mean() / 2) ** (-1 / beta))] for beta in STARTS]
    bounds = (np.r_[0.0, 0.005, np.zeros(n_parts)], np.r_[1e3, 3.0, np.full(n_parts, np.inf)])
    each = [
        optimize.least_squares(
            residuals, at, slopes, bounds=bounds, x_scale="jac", max_nfev=2000 if start is None else 30
        )
        for at in (starts if start is None else [np.clip(start, bounds[0] + TINY, bounds[1])])
    ]
    return np.asarray(min(each, key=lambda result: float(result.cost)).x)


def predicted(theta: Array, shares: Array) -> Array:
    """Loss (n,) of a text at shares (n, parts), by its law as `_fit` gives it."""
    return np.asarray(theta[0] + (shares @ theta[2:] + TINY) ** -theta[1])


def _mean(laws: Mapping[str, Array], mixture: Array) -> tuple[float, Array]:
    """Mean loss of the texts at a mixture (parts,), and its gradient."""
    value, slope = 0.0, np.zeros(len(mixture))
    for theta in laws.values():
        effective = mixture @ theta[2:] + TINY
        value += theta[0] + effective ** -theta[1]
        slope -= theta[1] * effective ** (-theta[1] - 1) * theta[2:]
    return value / len(laws), slope / len(laws)


def _optimum(laws: Mapping[str, Array], given: Array, tried: Array) -> list[float]:
    """The best shares, the mean loss there, and the regret of a given mixture and of the best one that was tried."""
    start = np.full(len(given), 1 / len(given))
    found = optimize.minimize(  # type: ignore[call-overload]  # its stubs want the gradient to be 1-d by type
        lambda mixture: _mean(laws, np.clip(mixture, 0, 1))[0],
        start,
        jac=lambda mixture: _mean(laws, np.clip(mixture, 0, 1))[1],
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(given),
        constraints=[optimize.LinearConstraint(np.ones((1, len(given))), 1.0, 1.0)],
        tol=1e-12,
    )
    best = min((np.clip(found.x, 0, 1) / np.clip(found.x, 0, 1).sum(), given, tried), key=lambda p: _mean(laws, p)[0])
    loss = _mean(laws, best)[0]
    return [*best.tolist(), loss, *(_mean(laws, mixture)[0] - loss for mixture in (given, tried))]


def _row(text: str, theta: Array, parts: list[str]) -> dict[str, Any]:
    """The law of a text: tau of its own part is 1; of a text that is no part, that of the part worth most."""
    worth = theta[2:]
    own = worth[parts.index(text)] if text in parts and worth[parts.index(text)] > TINY else worth.max()
    tau = {f"tau_{name}": float(each / own) for name, each in zip(parts, worth, strict=True)}
    return {"text": text, "E": float(theta[0]), "B": float(own ** -theta[1]), "beta": float(theta[1]), **tau}


def _rms(theta: Array, shares: Array, loss: Array) -> float:
    kept, y, _ = _runs_of("", shares, loss)
    return float(np.sqrt(np.mean((np.log(predicted(theta, kept)) - y) ** 2)))


def _total(laws: Mapping[str, Array], shares: Array, losses: Mapping[str, Array]) -> float:
    return float(sum(_rms(laws[text], shares, loss) ** 2 * np.isfinite(loss).sum() for text, loss in losses.items()))


def _held_out(shares: Array, losses: Mapping[str, Array]) -> str:
    """What the laws miss runs by that were left out, a fifth at a time."""
    fold = np.random.default_rng(0).permutation(len(shares)) % FOLDS
    missed: list[Array] = []
    try:
        for text, loss in losses.items():
            for each in range(FOLDS):
                theta = _fit(*_runs_of(text, shares[fold != each], loss[fold != each]))
                out = (fold == each) & np.isfinite(loss)
                missed.append(np.log(predicted(theta, shares[out]) / loss[out]))
    except FitError:
        return "too few runs to leave a fifth of them out: nothing shows that the law predicts"
    error = np.sqrt(np.mean(np.concatenate(missed) ** 2))
    return f"fitted to four fifths of the runs, the law missed the others by {error:.2%} of the loss (rms)"
