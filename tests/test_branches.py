"""Decay branches: each end is an independent trial of that length; neither trunk nor interruption feels them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from helpers.trials import make_trial, train_config, trial_config
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results, read_results
from tinyscale.spec.costs import memory_bytes, parameters
from tinyscale.spec.data_config import DataConfig
from tinyscale.storage import Folder
from tinyscale.training.loop import train
from tinyscale.training.progress import Outcome

STEPS, BATCH = 40, 256
WSD = {"schedule": "wsd", "tokens_budget": STEPS * BATCH, "repeats": True, "eval_points": 3, "warmup_fraction": 0.1}
BRANCHED = {**WSD, "branches": [0.25, 0.5, 0.75]}


def run(data: DataConfig, **changes: Any) -> Outcome:
    options = {name: changes.pop(name) for name in ("checkpoints", "should_stop") if name in changes}
    trial, corpus = make_trial(trial_config(data, **changes))
    return train(trial, corpus, lambda _: None, **options)


def numbers(outcome: Outcome) -> list[tuple[Any, ...]]:
    return [(p.step, p.decayed, p.val_loss, p.val_loss_se, p.train_loss, p.lr_now) for p in outcome.points]


@pytest.fixture(scope="module")
def whole(tiny_corpus: DataConfig) -> Outcome:
    return run(tiny_corpus, **BRANCHED)


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_a_branch_ends_where_an_independent_trial_of_that_length_does(
    tiny_corpus: DataConfig, whole: Outcome, steps: int
) -> None:
    warmup = WSD["warmup_fraction"] * STEPS / steps  # as many steps of warm-up
    alone = run(tiny_corpus, **WSD | {"tokens_budget": steps * BATCH, "warmup_fraction": warmup}).points[-1]
    (branch,) = (point for point in whole.points if point.decayed and point.step == steps)
    assert branch.tokens == alone.tokens == steps * BATCH
    assert (branch.val_loss, branch.val_loss_se, branch.lr_now) == (alone.val_loss, alone.val_loss_se, alone.lr_now)
    assert branch.loss_by_position == alone.loss_by_position


def test_the_trunk_is_the_trial_without_branches_bit_for_bit(tiny_corpus: DataConfig, whole: Outcome) -> None:
    trunk = [row for row in numbers(whole) if not row[1] or row[0] == STEPS]
    assert trunk == numbers(run(tiny_corpus, **WSD))
    assert [point.step for point in whole.points if point.decayed] == [10, 20, 30, 40]


@pytest.mark.parametrize("call", [1, 8, 9, 10, 11, 19, 21, 30, 45, 51])
def test_an_interrupted_trial_goes_on_as_if_it_had_not_been_inside_a_branch_too(
    tiny_corpus: DataConfig, whole: Outcome, tmp_path: Path, call: int
) -> None:
    folder, calls = Folder.at(tmp_path), iter(range(1, 100))
    stopped = run(tiny_corpus, **BRANCHED, checkpoints=folder, should_stop=lambda _: next(calls) == call)
    assert stopped.state == "running"
    resumed = run(tiny_corpus, **BRANCHED, checkpoints=folder)
    assert numbers(resumed) == numbers(whole)


def test_branches_cost_their_decay_only(tiny_corpus: DataConfig) -> None:
    trial, _ = make_trial(trial_config(tiny_corpus, **BRANCHED))
    assert trial.branch_ends == (10, 20, 30)
    assert trial.steps_trained == 40 + 2 + 4 + 6
    assert trial.flops == trial.flops_per_token["flops"] * 52 * BATCH
    calls: list[int] = []
    run(tiny_corpus, **BRANCHED, should_stop=lambda step: bool(calls.append(step)))
    assert len(calls) == trial.steps_trained - 1, "asked after every step but the last"


def test_a_branch_holds_the_trunks_weights_and_averages_too(tiny_corpus: DataConfig) -> None:
    branched, plain = (trial_config(tiny_corpus, **changes) for changes in (BRANCHED, WSD))
    total = parameters(plain.model, 257).n_total
    assert memory_bytes(branched, 257) - memory_bytes(plain, 257) == 3 * 4 * total


def test_the_rows_of_branches_share_a_run_and_count_their_own_tokens(
    tiny_corpus: DataConfig, whole: Outcome, tmp_path: Path
) -> None:
    trial, corpus = make_trial(trial_config(tiny_corpus, **BRANCHED))
    rows = [point_columns(trial, vars(point), corpus.val_tokens, corpus.val_bytes) for point in whole.points]
    Results(str(tmp_path)).write_trial(trial, rows, "finished", None, {})
    ends = read_results(str(tmp_path)).query("decayed == True")
    assert ends["run"].nunique() == 1
    assert ends["tokens"].tolist() == [steps * BATCH for steps in (10, 20, 30, 40)]
    assert (ends["flops"] / ends["tokens"]).nunique() == 1
    assert ends["branches"].tolist() == ["[0.25, 0.5, 0.75]"] * 4


def test_branches_move_the_identity_and_none_is_no_branch(tiny_corpus: DataConfig) -> None:
    identities = [
        make_trial(trial_config(tiny_corpus, **{**WSD, **changes}))[0].identity
        for changes in ({}, {"branches": []}, {"branches": [0.5]})
    ]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schedule": "cosine", "branches": [0.5]}, "only schedule wsd has a trunk"),
        ({"schedule": "wsd", "branches": [0.5, 0.25]}, "rising shares between 0 and 1"),
        ({"schedule": "wsd", "branches": [0.5, 1.0]}, "rising shares between 0 and 1"),
        ({"schedule": "wsd", "branches": [0.05]}, "would decay before warm-up ends"),
    ],
)
def test_branches_that_cannot_be_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        train_config(**changes)
