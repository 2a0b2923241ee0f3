"""The law of what rounding adds to the loss: what it finds in data made from it, and which rows and sizes it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.programs import invoke
from helpers.runs import TRUTHS
from tinyscale.analysis.study import find_laws
from tinyscale.errors import FitError
from tinyscale.fitting.choose import fit
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.laws import find_law
from tinyscale.fitting.record import Record
from tinyscale.fitting.text import describe

TRUE = TRUTHS["bits"]


def measured(sd: float = 0.1, seed: int = 0, error: float = 1e-9) -> pd.DataFrame:
    """Four sizes, three budgets and five bits, with log-normal noise of `sd`; delta_se: the same in all rows."""
    sizes = np.meshgrid([1e4, 3e4, 1e5, 3e5], [5e5, 1.5e6, 6e6], [3.0, 4.0, 5.0, 6.0, 8.0])
    n, d, bits = (axis.ravel() for axis in sizes)
    noise = np.exp(sd * np.random.default_rng(seed).standard_normal(n.size))
    delta = find_law("bits").loss(TRUE, n=n, d=d, bits=bits) * noise
    return pd.DataFrame({"n": n, "d": d, "bits": bits, "delta": delta, "delta_se": error})


def fitted(frame: pd.DataFrame) -> Fit:
    found = fit(frame, "bits")
    assert isinstance(found, Fit)
    return found


def test_the_law_is_its_formula() -> None:
    expected = 0.06 * 2e6**0.5 * 5e4**-0.34 * np.exp(-4 / 0.7)
    assert find_law("bits").loss(TRUE, n=5e4, d=2e6, bits=4.0) == pytest.approx(expected, rel=1e-12)


def test_without_noise_its_parameters_are_found_again() -> None:
    found = fitted(measured(sd=0))
    assert dict(found.params) == pytest.approx(TRUE, rel=1e-6)
    assert found.certificate.share_of_starts == 1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    inside = []
    for seed in range(20):
        found = fitted(measured(seed=seed))
        inside += [found.interval(name)[0] <= value <= found.interval(name)[1] for name, value in TRUE.items()]
    assert np.mean(inside) > 0.85


def test_the_value_of_theory_stands_with_the_estimate_and_stays_when_the_record_is_read_again() -> None:
    record = fitted(measured()).record
    again = Record.of_json(record.as_json())
    for each in (record, again):
        (line,) = [line for line in describe(each).splitlines() if line.split()[:1] == ["gP"]]
        assert line.endswith("theory: 0.7213")
        assert each.headline == "gP"


@pytest.mark.parametrize(
    ("rows", "law", "held"),
    [
        (lambda f: f[f["d"] == 1.5e6], "bits-n", "at fixed tokens D = 1.5M"),
        (lambda f: f[f["n"] == 1e5], "bits-d", "at fixed parameters N = 100K"),
        (lambda f: f[(f["n"] == 1e5) & (f["d"] == 1.5e6)], "bits-alone", "tokens D = 1.5M and parameters N = 100K"),
        (lambda f: f[f["d"] == 1.5e6].assign(d=lambda g: 20 * g["n"]), "bits-n", "at a fixed ratio D/N = 20"),
        (lambda f: f[f["d"] == 1.5e6].drop(columns=["d"]), "bits-n", "the other sizes are not known"),
    ],
    ids=["tokens fixed", "parameters fixed", "both fixed", "one ratio", "tokens not known"],
)
def test_what_does_not_vary_is_dropped_and_said(rows: object, law: str, held: str) -> None:
    found = fitted(rows(measured(sd=0)))  # type: ignore[operator]
    assert found.law.name == law
    assert held in found.slice
    assert found.params["gP"] == pytest.approx(0.7, rel=1e-5)


def test_rows_whose_delta_is_not_seen_are_left_out_and_counted() -> None:
    frame = measured(sd=0, error=0.0002)
    unseen = frame["delta"] < 0.0004
    frame.loc[frame.index[:2], "delta"] *= -1
    unseen |= frame["delta"] < 0
    found = fitted(frame)
    assert len(found.points) == (~unseen).sum()
    assert list(found.origin.dropped.values()) == [int(unseen.sum())]
    assert f"{int(unseen.sum())} rows dropped: delta below 2 of its standard errors" in describe(found.record)
    with pytest.raises(FitError, match="no row has a delta of twice its standard error"):
        fit(frame.assign(delta_se=1e9), "bits")


def test_it_is_fitted_to_a_table_of_somebody(tmp_path: Path) -> None:
    path, frame = tmp_path / "rounded.csv", measured(error=0.0002)
    frame.rename(columns={"n": "params", "d": "tokens"}).to_csv(path, index=False)
    (found,) = find_laws(str(path), law="bits").fits
    assert dict(found.record.columns) == {"n": "params", "d": "tokens", "bits": "bits", "loss": "delta"}
    dropped = int((frame["delta"] < 0.0004).sum())
    assert (found.record.points, sum(found.record.origin.dropped.values())) == (60 - dropped, dropped)
    done = invoke("fit", path, "--law", "bits", "--results", tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "delta = C D^gD N^-gN e^(-P/gP)" in done.output
    assert "theory: 0.7213" in done.output
