"""Arms that tried several learning rates: chosen on one seed, compared on the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.results import PROVENANCE, point_columns
from helpers.sweeps import ON_CORES
from helpers.trials import known_trial
from tinyscale.analysis.best_lr import at_chosen_rate, judging_seed
from tinyscale.analysis.runs import Group, free_settings
from tinyscale.analysis.study import Analysis, find_laws
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.sweep import load_sweep

WIDTHS = (16, 32, 64)
RATES = {"adamw": (5e-3, 1e-2, 2e-2, 4e-2), "lion": (1e-3, 2e-3, 4e-3, 8e-3)}
BEST = {"adamw": 1.2e-2, "lion": 2.4e-3}


def found_in(folder: Path, *, seeds: int = 3, lucky: bool = False, lost: float = np.inf, **changes: object) -> Analysis:
    """Arms of one loss at their best rates. lucky: seed 0 alone flatters lion; lost: rates from here on diverge.

    changes: of rates tried or of the best rate: `lion_rates=...`, `lion_best=...`.
    """
    results, entries, noise = Results(str(folder)), [], np.random.default_rng(0)
    for arm, rates in RATES.items():
        for width in WIDTHS:
            for lr in changes.get(f"{arm}_rates", rates):
                for seed in range(seeds):
                    trial = known_trial(d_model=width, lr=lr, optimizer=arm, seed=seed, repeats=True)
                    away = np.log(lr / float(changes.get(f"{arm}_best", BEST[arm])))
                    loss = 3 - 0.2 * np.log(width) + 0.05 * away**2 + 1e-3 * noise.standard_normal()
                    loss -= 0.2 if lucky and arm == "lion" and seed == 0 else 0
                    point = {"step": trial.steps, "tokens": trial.tokens, "val_loss": loss, "decayed": True}
                    diverged = lr >= lost
                    points = [] if diverged else [point_columns(trial, point, 100_000, 400_000)]
                    state = ("diverged", "not finite") if diverged else ("finished", None)
                    results.write_trial(trial, points, *state, PROVENANCE)
                    axes = {"lr": lr, "d_model": width}
                    entries.append(SweepEntry(trial.identity, Cell(arm, axes, seed)))
    results.write_sweep(SweepRecord("optimizer", "", "", ("lr", "d_model"), tuple(entries), PROVENANCE))
    return find_laws(str(folder))


def test_each_arm_is_compared_at_its_own_rate(tmp_path: Path) -> None:
    (contrast,) = found_in(tmp_path).contrasts
    assert contrast.pairs == 2 * len(WIDTHS), "seeds 1 and 2; seed 0 chose"
    assert contrast.difference.value == pytest.approx(0, abs=0.02)
    assert "at its own learning rate, chosen on seed 0" in contrast.verdict


def test_the_luck_of_the_seed_that_chose_is_not_in_the_comparison(tmp_path: Path) -> None:
    (contrast,) = found_in(tmp_path, lucky=True).contrasts
    assert contrast.difference.value == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("best", "side"), [(1e-3, "lowest"), (9e-3, "highest")])
def test_a_best_rate_at_the_edge_gives_no_verdict_and_says_so(tmp_path: Path, best: float, side: str) -> None:
    done = found_in(tmp_path, lion_best=best)
    assert done.contrasts == ()
    (reason,) = [each.reason for each in done.refused if "no verdict" in each.reason]
    assert f"the {side} rate tried" in reason
    assert "shift its rates" in reason


def test_a_rate_that_diverged_bounds_the_range(tmp_path: Path) -> None:
    """Of adamw's rates the highest diverged at all sizes: the best one below it is inside the range."""
    (contrast,) = found_in(tmp_path, adamw_best=1.9e-2, lost=3e-2).contrasts
    assert contrast.difference.value == pytest.approx(0, abs=0.02)


def test_one_seed_alone_cannot_both_choose_and_compare(tmp_path: Path) -> None:
    done = found_in(tmp_path, seeds=1)
    assert done.contrasts == ()
    assert any("launch more seeds" in each.reason for each in done.refused)


def test_unequal_tries_give_no_verdict(tmp_path: Path) -> None:
    done = found_in(tmp_path, lion_rates=RATES["lion"][:3])
    assert done.contrasts == ()
    assert any("unequal numbers of learning rates" in each.reason for each in done.refused)


def test_the_shipped_comparison_of_optimizers_has_the_form_that_is_compared() -> None:
    (path,) = (path for path in ON_CORES if path.stem == "ablation_optimizer")
    rows = pd.DataFrame([
        {"arm": v.cell.arm, "seed": v.cell.seed, "lr": v.config.train.lr, "n_non_embedding": v.config.model.d_model**2}
        for v in load_sweep(path).variants
    ])  # fmt: skip
    middle = rows.groupby("arm")["lr"].transform("median")
    rows = rows.assign(tokens=20 * rows["n_non_embedding"], val_loss=3 + np.log(rows["lr"] / middle) ** 2)
    arms = [Group("optimizers", str(arm), str(arm), frame, {}) for arm, frame in rows.groupby("arm")]
    assert [free_settings(arm.frame) for arm in arms] == [["lr"]] * 3
    kept = [at_chosen_rate(arm, judging_seed(arms)).frame for arm in arms]
    assert [(set(frame["seed"]), len(frame)) for frame in kept] == [({1, 2}, 4)] * 3
