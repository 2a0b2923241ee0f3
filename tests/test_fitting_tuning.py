"""Laws of the best learning rate and batch."""

import numpy as np
import optuna
import pandas as pd
import pytest

from tinyscale.errors import FitError
from tinyscale.fitting.tuning import best_setting, fit_tuning


def swept(best: np.ndarray, n: np.ndarray, d: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Seven settings around the best one of each size, loss a lopsided bowl in log setting, 0.05 % noise."""
    rng, rows = np.random.default_rng(seed), []
    for at, size, tokens in zip(best, n, d, strict=True):
        z = np.linspace(-1.6, 1.6, 7) + 0.2
        loss = (2 + 50 * size**-0.3) * (1 + 0.01 * z**2 + 0.001 * z**3) * np.exp(5e-4 * rng.standard_normal(7))
        rows.append(pd.DataFrame({"n": size, "d": tokens, "lr": at * np.exp(z), "loss": loss}))
    return pd.concat(rows, ignore_index=True)


def test_the_power_of_the_best_learning_rate_comes_back() -> None:
    n = np.geomspace(1e6, 1e9, 6)
    found = fit_tuning(swept(1.8 * n**-0.4, n, 20 * n), "lr")
    low, high = found.interval("p")
    assert low < -0.4 < high
    assert found.params["p"] == pytest.approx(-0.4, abs=0.02)
    assert best_setting(found.estimates, 1e8) == pytest.approx(1.8 * 1e8**-0.4, rel=0.1)


def test_with_data_apart_from_size_both_powers_come_back() -> None:
    n, d = np.repeat(np.geomspace(1e6, 1e9, 4), 3), np.tile(np.geomspace(1e8, 1e10, 3), 4)
    found = fit_tuning(swept(1.79 * n**-0.713 * d**0.307, n, d), "lr")  # 2503.04715
    assert found.params["p"] == pytest.approx(-0.713, abs=0.02)
    assert found.params["q"] == pytest.approx(0.307, abs=0.03)


def test_a_size_whose_best_value_is_at_the_end_is_refused_with_the_reason() -> None:
    n = np.geomspace(1e6, 1e9, 5)
    frame = swept(1.8 * n**-0.4, n, 20 * n)
    frame = frame[~((frame["n"] == n[0]) & (frame["lr"] < 1.8 * n[0] ** -0.4))]
    found = fit_tuning(frame, "lr")
    assert "lowest at the smallest lr" in found.table["refused"].iloc[0]
    with pytest.raises(FitError, match="needs 3 sizes"):
        fit_tuning(frame[frame["n"] < n[3]], "lr")


def test_batches_of_different_size_have_best_rates_of_their_own() -> None:
    n = np.geomspace(1e6, 1e9, 4)
    small, large = (swept(at * n**-0.4, n, 20 * n) for at in (1.0, 2.0))
    both = pd.concat([small.assign(batch_tokens=1024), large.assign(batch_tokens=4096)])
    table = fit_tuning(both, "lr").table
    assert sorted(table["batch_tokens"].unique()) == [1024, 4096]
    ratio = table.groupby("batch_tokens")["best"].apply(list)
    assert np.divide(ratio[4096], ratio[1024]) == pytest.approx(2, rel=0.1)
    with pytest.raises(FitError, match=r"N = 1M, batch_tokens = 1024: best lr 0\.00\d+ \(95 %: 0\.00"):
        fit_tuning(both[both["n"] == n[0]], "lr")
    rounded = both.assign(d=both["d"].where(both["batch_tokens"] == 1024, both["d"] * 0.999))
    with pytest.raises(FitError, match="needs 3 sizes"):
        fit_tuning(rounded[rounded["n"] <= n[1]], "lr")


@pytest.mark.parametrize("follow", [False, True])
def test_the_best_rate_goes_with_the_batch_where_batches_differ(follow: bool) -> None:
    n = np.geomspace(5e7, 5e9, 6)
    batches = (
        {2**16: n[:4], 2**18: n[1:5], 2**20: n[2:]} if not follow else {2**14 * 4**k: n[k : k + 1] for k in range(6)}
    )
    parts = [swept(1e3 * sizes**-0.7 * (batch / 2**18) ** 0.5, sizes, 20 * sizes).assign(batch_tokens=batch)
             for batch, sizes in batches.items()]  # fmt: skip
    found = fit_tuning(pd.concat(parts), "lr")
    if follow:
        assert any("batches differ" in note for note in found.warnings)
    else:
        assert [found.params[name] for name in ("p", "r")] == pytest.approx([-0.7, 0.5], abs=0.05)
        assert found.formula == "lr* = k N^p B^r"
        assert best_setting(found.estimates, 1e9, 2e10, 2**18) == pytest.approx(1e3 * 1e9**-0.7, rel=0.1)


def drawn(at: float, trials: int, seed: int) -> tuple[list[float], list[float]]:
    """Rates as TPE draws them, crowded about the best one, and lopsided losses with 0.3 % of noise."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=trials // 3))
    rng = np.random.default_rng(seed)
    rates, losses = [], []
    for _ in range(trials):
        trial = study.ask()
        rates.append(trial.suggest_float("lr", 1e-4, 1e-1, log=True))
        z = np.log(rates[-1] / at)
        losses.append(3 * np.exp(0.012 * z**2 + 0.003 * max(z, 0) ** 3 + 3e-3 * rng.standard_normal()))
        study.tell(trial, losses[-1])
    return rates, losses


def test_the_law_comes_back_from_the_uneven_draws_of_a_search() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    n = np.geomspace(1e4, 1e6, 4)
    best = 0.3 * n**-0.35
    frames = []
    for index, (size, at) in enumerate(zip(n, best, strict=True)):
        rates, losses = drawn(at, 24, seed=index)
        frames.append(pd.DataFrame({"n": size, "d": 20 * size, "lr": rates, "loss": np.array(losses) * size**-0.05}))
    found = fit_tuning(pd.concat(frames), "lr")
    assert (found.table["refused"] == "").all()
    assert found.table["best"].to_numpy() == pytest.approx(best, rel=0.3)
    low, high = found.interval("p")
    assert low < -0.35 < high
    assert found.params["p"] == pytest.approx(-0.35, abs=0.05)


TRUTH = {"k": 1.79, "p": -0.713, "q": 0.307, "k_B": 0.58, "p_B": 0.0, "q_B": 0.571}  # 2503.04715


def bowl(lr: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Excess of log loss at so many e-folds off the best rate and batch: steeper above the best rate than below it."""
    rise = 0.012 / 0.35**2 * (np.exp(0.35 * lr) - 1 - 0.35 * lr)
    return np.asarray(np.maximum(rise + 0.006 * batch**2 * (1 - 0.1 * batch) - 0.4 * 0.012 * lr * batch, 0))


def two_way(way: str, *, noise: float = 0.003, seed: int = 0) -> pd.DataFrame:
    """Runs at 12 sizes about the optimum of each: a grid of rates and batches, or as a search draws them."""
    rng, rows = np.random.default_rng(seed), []
    for n in (6e7, 2e8, 4e8, 1e9):
        for d in (2e9, 1e10, 1e11):
            if way == "drawn":
                lr, batch = np.concatenate([rng.uniform(-2.5, 2.5, (8, 2)), rng.standard_normal((20, 2))]).T
            else:
                steps = np.log(2) * np.arange(-3, 4) + rng.uniform(-0.3, 0.3, (2, 1))
                lr, batch = (axis.ravel() for axis in np.meshgrid(*steps))
            loss = (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * np.exp(
                bowl(lr, batch) + noise * rng.standard_normal(lr.shape)
            )
            if way == "diverged":
                loss[lr - 0.4 * batch > 1.7] *= 1 + rng.exponential(0.3, (lr - 0.4 * batch > 1.7).sum())
                loss[lr - 0.4 * batch > 2.3] = np.inf
            best_lr, best_batch = 1.79 * n**-0.713 * d**0.307, 0.58 * d**0.571
            columns = {"lr": best_lr * np.exp(lr), "batch_tokens": best_batch * np.exp(batch), "loss": loss}
            rows.append(pd.DataFrame({"n": n, "d": d, **columns}))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize("way", ["grid", "diverged", "drawn"])
def test_rate_and_batch_come_back_together_from_grids_and_draws(way: str) -> None:
    found = fit_tuning(two_way(way))
    assert found.formula == "lr* = k N^p D^q (B / B*)^r, B* = k_B N^p_B D^q_B"
    for name, value in TRUTH.items():
        low, high = found.interval(name)
        assert low < value < high, name
    exponents = {name: found.params[name] for name in ("p", "q", "q_B", "r")}
    assert exponents == pytest.approx({"p": -0.713, "q": 0.307, "q_B": 0.571, "r": 0.4}, abs=0.05)
    at = {"n": 3e8, "d": 2e10}
    best = 1.79 * 3e8**-0.713 * 2e10**0.307
    assert best_setting(found.estimates, **at) == pytest.approx(best, rel=0.15)
    twice = best_setting(found.estimates, **at, batch=2 * 0.58 * 2e10**0.571)
    assert twice == pytest.approx(best * 2**0.4, rel=0.2), "a larger batch takes a larger rate"


def test_what_twice_the_best_value_costs_is_given_in_nats() -> None:
    found = fit_tuning(two_way("grid"))
    loss = found.table["loss"].to_numpy(float)
    for setting, curvature in (("lr", 0.012), ("B", 0.012)):
        low, high = found.interval(f"cost_{setting}")
        assert low < np.exp(np.log(loss).mean()) * curvature / 2 * np.log(2) ** 2 < high


def test_runs_that_diverged_do_not_move_the_optimum_but_bound_the_range() -> None:
    n = np.geomspace(1e6, 1e9, 6)
    frame = swept(1.8 * n**-0.4, n, 20 * n)
    high = frame.groupby("n")["lr"].transform("max") == frame["lr"]
    sound = fit_tuning(frame, "lr")
    for loss in (frame["loss"] * 1.25, np.inf):
        found = fit_tuning(frame.assign(loss=frame["loss"].where(~high, loss)), "lr")
        at = [best_setting(each.estimates, 3e7) for each in (found, sound)]
        assert at[0] == pytest.approx(at[1], rel=0.1)
        assert (found.table["refused"] == "").all()


def test_a_batch_without_an_optimum_inside_is_refused_and_the_rate_given_at_each_batch() -> None:
    frame = two_way("grid")
    best = 0.58 * frame["d"] ** 0.571
    above = frame[(frame["batch_tokens"] > 1.3 * best)]
    found = fit_tuning(above)
    assert found.law.name == "lr"
    assert found.formula.startswith("lr* = k N^p D^q B^r") or found.formula.startswith("lr* = k N^p B^r")
    assert any(note.startswith("no law of the best batch_tokens") for note in found.warnings)
    low, high = found.interval("r")
    assert low < 0.4 < high


def test_weight_decay_joins_the_law_and_gives_the_timescale() -> None:
    rng, rows = np.random.default_rng(0), []
    for n in (1e6, 1e7, 1e8, 1e9):
        for per_param in (10, 40, 160):
            d, z = n * per_param, rng.standard_normal((40, 3))
            lr, batch = 1.79 * n**-0.713 * d**0.307, 0.58 * d**0.571
            decay = batch / (lr * d * 1.084 * per_param**-0.527)  # 2505.13738
            excess = 0.006 * z[:, 0] ** 2 + 0.004 * z[:, 1] ** 2 + 0.004 * z[:, 2] ** 2 + 0.002 * z[:, 0] * z[:, 2]
            columns = dict(
                zip(("lr", "batch_tokens", "weight_decay"), np.exp(z.T) * [[lr], [batch], [decay]], strict=True)
            )
            loss = 3 * n**-0.01 * d**-0.02 * np.exp(excess + 1e-3 * rng.standard_normal(40))
            rows.append(pd.DataFrame({"n": n, "d": d, **columns, "loss": loss}))
    none = rows[0].head(3).assign(weight_decay=0.0)
    found = fit_tuning(pd.concat([*rows, none], ignore_index=True))
    assert found.columns["setting"] == "lr" and "k_w" in found.params
    assert "3 runs left out: weight_decay is 0 in them, which a power law cannot reach" in found.warnings
    for name, value in {"p_tau": 0.527, "q_tau": -0.527, "p": -0.713, "q_B": 0.571}.items():
        low, high = found.interval(name)
        assert low < value < high, name
