"""`train.lr: auto`: from a searched rate over its fitted law to the trials of another sweep, and kept there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.results import write_loss
from helpers.sweeps import SWEEP, write_tiny_sweep
from tinyscale.cli.tables import plan_summary
from tinyscale.errors import ConfigError
from tinyscale.machine import Capacity
from tinyscale.orchestration.record import record_sweep
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.reporting.page import write_report
from tinyscale.reporting.write import analyse
from tinyscale.results.status import read_status
from tinyscale.results.store import Results
from tinyscale.spec.sweep import load_sweep

BODY = SWEEP.replace("{kind: byte}", "{kind: byte}, val_bytes: 101K")
SEARCHED = (
    BODY.replace("name: tiny", "name: rates").replace(", lr: 1e-2", "")
    + """\
axes: {d_model: [16, 32, 64, 128]}
search: {fields: {lr: {low: 1e-4, high: 1e-1, log: true}}, trials: 24}
"""
)
AUTO = BODY.replace("lr: 1e-2", "lr: auto") + "axes: {d_model: [16, 48, 96]}\nseeds: [0, 1]\n"


@pytest.fixture
def plan(tmp_path: Path, long_corpus: Path) -> Callable[..., Plan]:
    def make(text: str, *overrides: str) -> Plan:
        sweep = load_sweep(write_tiny_sweep(tmp_path, text, corpus=long_corpus), overrides=overrides)
        return make_plan(sweep, Results(str(tmp_path / "results")), Capacity(2, 0), measure=False)

    return make


def best(n: float) -> float:
    return 0.3 * n**-0.35


def searched(plan: Callable[..., Plan], results: Results, *overrides: str, name: str = "rates") -> None:
    """A search as its launch would leave it, its losses a bowl about the best rate of each size."""
    made = plan(SEARCHED.replace("name: rates", f"name: {name}"), *overrides)
    rng, trials = np.random.default_rng(0), []
    for planned in made.trials:
        drawn = planned.with_sample({"train.lr": float(f"{10 ** rng.uniform(-4, -1):.3g}")})
        trial, n = drawn.trial, drawn.trial.parameters.n_non_embedding
        loss = 3 * n**-0.05 * (1 + 0.02 * np.log(trial.config.train.lr / best(n)) ** 2)
        write_loss(results, trial, loss * np.exp(1e-4 * rng.standard_normal()))
        trials.append(drawn)
    record_sweep(Plan(made.sweep, tuple(trials), 2, ()), results, {})


def test_the_rate_of_a_sweep_is_that_of_the_law_at_each_size_and_is_kept(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    results = Results(str(tmp_path / "results"))
    searched(plan, results)
    done = analyse(str(tmp_path / "results"), str(tmp_path / "results"))
    assert [found.law.name for found in done.fits] == ["lr"], "a law of the rate, and none of losses at each draw"
    assert done.refused == ()
    made = plan(AUTO)
    for planned in made.trials:
        lr, n = planned.trial.config.train.lr, planned.trial.parameters.n_non_embedding
        assert lr == pytest.approx(best(n), rel=0.1)
        assert float(f"{lr:.3g}") == lr
    assert len({planned.trial.config.train.lr for planned in made.trials}) == 3
    (told,) = [line for line in plan_summary(made) if line.startswith("train.lr auto is ")]
    rates = ", ".join(dict.fromkeys(str(planned.trial.config.train.lr) for planned in made.trials))
    assert told.startswith(f"train.lr auto is {rates} at N = ")
    assert "for 6 of 6 trials: by the law rates-lr" in told

    record_sweep(made, results, {})
    entry = json.loads((tmp_path / "results/fits/fits.json").read_text())
    entry[0]["params"]["k"]["value"] *= 2  # fitted again, it says another rate
    del entry[0]["sha256"]
    (tmp_path / "results/fits/fits.json").write_text(json.dumps(entry))
    again = plan(AUTO)
    assert [p.trial.identity for p in again.trials] == [p.trial.identity for p in made.trials]
    assert plan(AUTO.replace("name: tiny", "name: other")).trials[0].trial.identity != made.trials[0].trial.identity


def test_without_a_law_for_the_task_a_stated_rule_gives_all_three_settings(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    every = AUTO.replace("batch_tokens: 256", "batch_tokens: auto, weight_decay: auto")
    assert every != AUTO
    made = plan(every)
    for planned in made.trials:
        train, n = planned.trial.config.train, planned.trial.parameters.n_non_embedding
        assert train.batch_tokens % planned.trial.config.model.context_length == 0
        assert train.lr == pytest.approx(0.07 * (train.batch_tokens / n) ** 0.5, rel=0.01)
        tau = train.batch_tokens / (train.lr * train.weight_decay * planned.trial.tokens)
        assert train.weight_decay == 1 or tau == pytest.approx(1.084 * (planned.trial.tokens / n) ** -0.527, rel=0.1)
    for setting in ("lr", "batch_tokens", "weight_decay"):
        assert any(
            line.startswith(f"train.{setting} auto is ") and "prior rule, not tuned on your text" in line
            for line in plan_summary(made)
        )
    searched(plan, Results(str(tmp_path / "results")), "optimizer=lion")
    analyse(str(tmp_path / "results"), str(tmp_path / "results"))
    assert all("rates-lr is of another optimizer" in note for note in plan(AUTO).notes if note.startswith("train.lr"))


def test_without_a_law_and_a_rule_the_error_says_what_to_run(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigError, match=r"line 5: d_model=16: train\.lr = 'auto': .* \(none at all\).*; launch"):
        plan(AUTO, "optimizer=lion")


def test_batch_and_rate_come_from_the_law_of_a_search_over_both(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    results, rng, trials = Results(str(tmp_path / "results")), np.random.default_rng(0), []
    made = plan(
        SEARCHED.replace("name: rates", "name: both")
        .replace("fields: {", "fields: {batch_tokens: {choices: [64, 128, 256, 512, 1024]}, ")
        .replace("trials: 24", "trials: 40")
    )
    for planned in made.trials:
        batch = int(rng.choice([64, 128, 256, 512, 1024]))
        values = {"train.lr": float(f"{10 ** rng.uniform(-4, -1):.3g}"), "train.batch_tokens": batch}
        drawn = planned.with_sample(values)
        trial, n = drawn.trial, drawn.trial.parameters.n_non_embedding
        x, y = np.log(trial.config.train.lr / best(n)), np.log(batch / 256)
        loss = 3 * n**-0.05 * np.exp(0.02 * x**2 + 0.02 * y**2 - 0.02 * x * y + 1e-4 * rng.standard_normal())
        write_loss(results, trial, loss)
        trials.append(drawn)
    record_sweep(Plan(made.sweep, tuple(trials), 2, ()), results, {})
    (found,) = analyse(str(tmp_path / "results"), str(tmp_path / "results")).fits
    assert found.law.name == "settings"
    both = plan(AUTO.replace("batch_tokens: 256", "batch_tokens: auto"))
    for planned in both.trials:
        assert abs(planned.trial.config.train.batch_tokens - 256) <= 32
        assert planned.trial.config.train.lr == pytest.approx(best(planned.trial.parameters.n_non_embedding), rel=0.15)
    assert all("by the law both-settings" in note for note in both.notes if " auto is " in note)
    for planned in plan(AUTO, "batch_tokens=1024").trials:
        rate = best(planned.trial.parameters.n_non_embedding) * 4**0.5
        assert planned.trial.config.train.lr == pytest.approx(rate, rel=0.15), "the rate is that at the batch given"


def test_a_law_used_where_it_was_not_fitted_is_said(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    searched(plan, Results(str(tmp_path / "results")))
    analyse(str(tmp_path / "results"), str(tmp_path / "results"))
    notes = plan(AUTO.replace("96]", "512]"), "batch_tokens=512").notes
    assert any("times beyond what it was fitted to" in note for note in notes)
    assert all("which is of batch_tokens 256, not 512" in note for note in notes if note.startswith("train.lr"))


def test_of_two_laws_the_one_fitted_at_the_batch_counts_though_it_has_fewer_runs(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    results = Results(str(tmp_path / "results"))
    searched(plan, results)
    searched(plan, results, "batch_tokens=512", "search.trials=12", name="other")
    analyse(str(tmp_path / "results"), str(tmp_path / "results"))
    for batch, law in ((256, "rates-lr"), (512, "other-lr")):
        rates = [note for note in plan(AUTO, f"batch_tokens={batch}").notes if note.startswith("train.lr")]
        assert all(note.endswith(f"by the law {law}") for note in rates)


def test_status_and_report_tell_of_a_search(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    results = Results(str(tmp_path / "results"))
    searched(plan, results)
    status = read_status(results)
    assert status.counts(status.sweeps[0])["finished"] == 96
    assert all("lr" in entry.cell.axes for entry in status.sweeps[0].entries)
    write_report(str(tmp_path / "results"))
    page = (tmp_path / "results/report.html").read_text()
    assert "lr* = " in page
    assert "not fitted" not in page.lower()


def test_the_plan_of_a_search_counts_by_group_and_forecasts_from_the_middle(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    made = plan(SEARCHED)
    assert [planned.state for planned in made.trials] == ["unsampled"] * 96
    assert {planned.trial.config.train.lr for planned in made.trials} == {0.00316}
    assert len(made.to_run) == 96
    assert plan_summary(made)[:2] == [
        "96 trials: 0 finished, 96 to run, 2 at a time",
        "  96: to be sampled by the search",
    ]
    searched(plan, Results(str(tmp_path / "results")))
    more: Any = plan(SEARCHED, "search.trials=30")
    assert [planned.state for planned in more.trials].count("finished") == 96
    assert [planned.state for planned in more.to_run] == ["unsampled"] * 24
    assert all(entry["trial"] is None for entry in more.as_json()["trials"] if entry["state"] == "unsampled")
