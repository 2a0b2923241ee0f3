"""The law of formation: jumps are found, the exponents lie in their intervals, and what has no jump is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tinyscale.errors import FitError
from tinyscale.fitting import fit
from tinyscale.fitting.formation import fit_formation

STEPS, SIZES = (256, 512, 1024, 2048, 4096), (3e3, 12e3, 48e3)


def made(
    p: float = 0.5, q: float = 0.0, noise: float = 0.1, seed: int = 0, steps: tuple[int, ...] = STEPS
) -> pd.DataFrame:
    """Runs of three seeds whose copy loss falls from 3 to .05 about D* = 1e6 (B C / 1024)^p (N / 12K)^q, with noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in steps:
        for n in SIZES:
            log_at = np.log(1e6) + p * np.log(step / 1024) + q * np.log(n / 12e3) + noise * rng.standard_normal()
            for tokens in 125_000 * 2.0 ** np.arange(7):
                for run in range(3):
                    middle = log_at + noise * rng.standard_normal()
                    copy = 0.05 + 2.95 / (1 + np.exp((np.log(tokens) - middle) / 0.15))
                    row = {"n_non_embedding": n, "tokens": tokens, "batch_tokens": step, "copy_loss": copy}
                    rows.append({**row, "first_loss": 3.1, "seed": run})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.0), (0.3, 0.1), (0.0, -0.2)])
def test_the_exponents_of_made_runs_lie_in_their_intervals(p: float, q: float) -> None:
    found = fit_formation(made(p, q, seed=1))
    for name, truth in {"p": p, "q": q}.items():
        low, high = found.interval(name)
        assert low < truth < high
        assert high - low < 0.3
    assert found.formula == "D* = k (B C)^p N^q"


def test_nine_in_ten_intervals_hold_the_truth() -> None:
    held = []
    for seed in range(30):
        found = fit_formation(made(seed=seed, noise=0.2, steps=STEPS[::2]))
        held += [
            found.interval("p")[0] < 0.5 < found.interval("p")[1],
            found.interval("q")[0] < 0 < found.interval("q")[1],
        ]
    assert np.mean(held) > 0.88


def test_a_jump_is_where_half_the_fall_is() -> None:
    found = fit_formation(made(noise=0.0))
    truth = 1e6 * (found.kept["batch_tokens"] / 1024) ** 0.5
    assert found.kept["best"].to_numpy() == pytest.approx(truth.to_numpy(), rel=0.02)
    assert found.params["p"] == pytest.approx(0.5, abs=0.01)
    assert found.kept["loss"].to_numpy() == pytest.approx(1.525, abs=0.1)


def test_curves_without_a_jump_inside_are_refused_and_named() -> None:
    frame = made(noise=0.05)
    never = (frame["batch_tokens"] == 4096) & (frame["n_non_embedding"] == 3e3)
    frame.loc[never, "copy_loss"] = 2.5
    early = (frame["batch_tokens"] == 256) & (frame["n_non_embedding"] == 3e3)
    frame.loc[early, "copy_loss"] = 0.1
    found = fit_formation(frame)
    assert len(found.kept) == len(found.table) - 2
    assert any("no jump up to 8" in each and "batch_tokens = 4" in each for each in found.warnings)
    assert any("formed by 125K tokens already" in each for each in found.warnings)
    assert found.interval("p")[0] < 0.5 < found.interval("p")[1]


def test_runs_of_one_size_give_the_exponent_of_the_batch_alone() -> None:
    frame = made(noise=0.05)
    found = fit(frame[frame["n_non_embedding"] == 12e3], "formation")
    assert found.formula == "D* = k (B C)^p"
    assert set(found.params) == {"k", "p"}
    assert "formation" in repr(found)


def test_runs_that_cannot_carry_the_law_are_refused() -> None:
    frame = made()
    with pytest.raises(FitError, match="needs copy_loss: measure the kind induction"):
        fit_formation(frame.drop(columns="copy_loss"))
    with pytest.raises(FitError, match="needs runs that differ in batch_tokens: it is 256 in all"):
        fit_formation(frame[frame["batch_tokens"] == 256])
    with pytest.raises(FitError, match=r"needs 3 curves with a jump and has 0 of 15 .*no jump"):
        fit_formation(frame.assign(copy_loss=2.9))
    with pytest.raises(FitError, match="2 budgets, 4 are needed"):
        fit_formation(frame[frame["tokens"] < 300_000])
