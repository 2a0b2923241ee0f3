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
