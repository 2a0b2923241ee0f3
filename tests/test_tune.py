"""`tinyscale tune`: which trials a search for a sweep's learning rate has, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.results import write_loss
from helpers.sweeps import SWEEP, write_tiny_sweep
from tinyscale.errors import ConfigError
from tinyscale.machine import Capacity
from tinyscale.orchestration.record import record_sweep
from tinyscale.planning.make_plan import FEW_STEPS, make_plan
from tinyscale.planning.plan import Plan
from tinyscale.planning.tune import RATES, tuning_of, with_more_rates
from tinyscale.reporting.write import analyse
from tinyscale.results.store import Results
from tinyscale.spec.sweep import Sweep, load_sweep

OPEN = SWEEP.replace("{kind: byte}", "{kind: byte}, val_bytes: 101K").replace("lr: 1e-2", "lr: auto")
GRID = "axes: {d_model: [16, 32, 48, 64, 96]}\nseeds: [0, 1, 2]\n"


@pytest.fixture
def load(tmp_path: Path, long_corpus: Path) -> Callable[..., Sweep]:
    def make(more: str = GRID, text: str = OPEN, *overrides: str) -> Sweep:
        return load_sweep(write_tiny_sweep(tmp_path, text + more, corpus=long_corpus), overrides=overrides)

    return make


@pytest.fixture
def plan(tmp_path: Path) -> Callable[[Sweep], Plan]:
    return lambda sweep: make_plan(sweep, Results(str(tmp_path / "results")), Capacity(2, 0), measure=False)


def flops(plan: Plan) -> float:
    return sum(planned.trial.flops for planned in plan.trials)


def test_a_search_costs_at_most_its_budget_and_more_of_it_comes_nearer_to_the_sweep(
    load: Callable[..., Sweep], plan: Callable[[Sweep], Plan]
) -> None:
    made = plan(load(GRID, OPEN, "tokens_budget=2M", "repeats=true"))
    reached = []
    for budget in (0.02, 0.1, 0.5):
        search = plan(tuning_of(made, budget))
        assert 0 < flops(search) <= budget * flops(made)
        assert min(planned.trial.steps for planned in search.trials) >= FEW_STEPS
        cells = {planned.cell.without(["lr"]).key for planned in search.trials}
        assert len(search.trials) == RATES * len(cells)
        assert len(cells) >= 3
        reached.append(max(planned.trial.flops for planned in search.trials))
    assert reached == sorted(reached)
    assert reached[0] < reached[-1]


def test_what_leaves_no_rate_open_or_pays_for_no_search_is_refused(
    load: Callable[..., Sweep], plan: Callable[[Sweep], Plan]
) -> None:
    with pytest.raises(ConfigError, match=r"write train\.lr: auto"):
        tuning_of(plan(load(GRID, OPEN.replace("lr: auto", "lr: 1e-2"))), 0.1)
    with pytest.raises(ConfigError, match="raise --budget"):
        tuning_of(plan(load()), 1e-6)


def losses(plan: Plan, best: Callable[[float], float]) -> pd.DataFrame:
    """A point of each trial, its loss lowest at the best rate of its size."""
    return pd.DataFrame([
        {"trial": planned.trial.identity, "val_loss": 3 + 0.1 * np.log(planned.trial.config.train.lr / best(n)) ** 2}
        for planned in plan.trials
        for n in [planned.trial.parameters.n_non_embedding]
    ])  # fmt: skip


def test_a_search_goes_on_beyond_its_range_until_each_best_rate_is_inside(
    load: Callable[..., Sweep], plan: Callable[[Sweep], Plan]
) -> None:
    search: Sweep | None = tuning_of(plan(load(GRID, OPEN, "tokens_budget=2M", "repeats=true")), 0.1)
    rounds = 0
    while search is not None:
        made, rounds = plan(search), rounds + 1
        points = losses(made, lambda n: 20 * n**-0.5)
        search = with_more_rates(made, points)
    assert 1 < rounds < 6
    for trials in pd.DataFrame(
        {"cell": p.cell.without(["lr"]).key, "lr": p.trial.config.train.lr, "trial": p.trial.identity}
        for p in made.trials
    ).merge(points, on="trial").groupby("cell"):  # fmt: skip
        tried = trials[1].sort_values("lr")
        assert 0 < tried["val_loss"].to_numpy().argmin() < len(tried) - 1


def test_the_sweep_takes_its_rates_from_the_law_of_its_search(
    tmp_path: Path, load: Callable[..., Sweep], plan: Callable[[Sweep], Plan]
) -> None:
    sweep, results = load(GRID, OPEN, "tokens_budget=2M", "repeats=true"), Results(str(tmp_path / "results"))
    search = plan(tuning_of(plan(sweep), 0.5))
    for planned, row in zip(search.trials, losses(search, lambda n: n**-0.5).to_dict("records"), strict=True):
        write_loss(results, planned.trial, row["val_loss"])
    record_sweep(search, results, {})
    analyse(str(tmp_path / "results"), str(tmp_path / "results"))
    for planned in plan(sweep).trials:
        n = planned.trial.parameters.n_non_embedding
        assert planned.trial.config.train.lr == pytest.approx(n**-0.5, rel=0.1)
        assert "by the law tiny-tune" in planned.auto_values["train.lr"].why
