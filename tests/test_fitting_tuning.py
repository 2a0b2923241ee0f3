"""Laws of the best learning rate and batch."""

import numpy as np
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
    assert best_setting(found, 1e8) == pytest.approx(1.8 * 1e8**-0.4, rel=0.1)


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
