# ruff: noqa: E501 - tables of messages
"""What a launch would do: what runs and why, in which order, and what is refused before anything has started."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.sweeps import SWEEP, write_tiny_sweep
from tinyscale.errors import ConfigError, DataError
from tinyscale.machine import Capacity
from tinyscale.planning import forecast
from tinyscale.planning import make_plan as planning
from tinyscale.planning.make_plan import make_plan
from tinyscale.planning.plan import Plan
from tinyscale.planning.resolve import resolve_against
from tinyscale.results.store import Results
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.grid import Variant
from tinyscale.spec.sweep import load_sweep
from tinyscale.spec.trial import Trial

HELD_OUT = ("{kind: byte}", "{kind: byte}, val_bytes: 101K")
CORES = Capacity(2, 0)
POINT = {"step": 1, "tokens": 256, "val_loss": 3.0, "decayed": False}
Planner = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path, long_corpus: Path) -> Planner:
    """Plan the tiny sweep with more lines, on the long corpus, against results in the test's own folder."""

    def make(
        more: str = "",
        *,
        replace: tuple[str, str] = ("", ""),
        overrides: tuple[str, ...] = (),
        capacity: Capacity = CORES,
        **options: Any,
    ) -> Plan:
        path = write_tiny_sweep(tmp_path, SWEEP.replace(*HELD_OUT).replace(*replace) + more, corpus=long_corpus)
        sweep = load_sweep(path, overrides=overrides)
        return make_plan(sweep, Results(str(tmp_path / "results")), capacity, **{"measure": False, **options})

    return make


@pytest.fixture
def refused(planned: Planner, tmp_path: Path, long_corpus: Path) -> Callable[..., str]:
    def message(*args: Any, error: type[Exception] = ConfigError, **options: Any) -> str:
        with pytest.raises(error) as caught:
            planned(*args, **options)
        assert not (tmp_path / "results").exists(), "nothing has started"
        return str(caught.value).replace(f"{tmp_path}/", "").replace(str(long_corpus), "TEXT")

    return message


GRID = "axes: {d_model: [16, 32], lr: [1e-3, 1e-2]}\n"


def test_trials_that_differ_only_in_what_is_fused_are_grouped(planned: Planner, tmp_path: Path) -> None:
    def groups(fuse: str) -> list[list[str]]:
        return [[p.label for p in group] for group in planned(f"{GRID}seeds: [0, 1]\nfuse: {fuse}\n").batched_sets]

    assert [len(group) for group in groups("[]")] == [1] * 8
    assert groups("[seed]")[0] == ["d_model=32 lr=0.001 seed=0", "d_model=32 lr=0.001 seed=1"], "the longest first"
    assert [len(group) for group in groups("[seed]")] == [2] * 4
    assert [len(group) for group in groups("[lr, seed]")] == [4, 4]
    assert [len(group) for group in groups("[lr]")] == [2] * 4
    plan = planned(f"{GRID}seeds: [0, 1]\nfuse: [seed]\n")
    Results(str(tmp_path / "results")).write_trial(plan.trials[0].trial, [POINT], "finished", None, {})
    again = planned(f"{GRID}seeds: [0, 1]\nfuse: [seed]\n")
    assert sorted(len(group) for group in again.batched_sets) == [1, 2, 2, 2], "what is done is left out"


def test_a_new_sweep_runs_all_of_its_trials_the_longest_first(planned: Planner) -> None:
    plan = planned("axes: {tokens_budget: [5120, 20480, 10240]}\nseeds: [0, 1]\n")
    assert [p.state for p in plan.trials] == ["new"] * 6
    assert [p.trial.tokens for p in plan.trials] == [5120, 5120, 20480, 20480, 10240, 10240], "the sweep's own order"
    assert [p.trial.tokens for p in plan.to_run] == [20480, 20480, 10240, 10240, 5120, 5120]
    assert [p.label for p in plan.trials][:2] == ["tokens_budget=5120 seed=0", "tokens_budget=5120 seed=1"]


def test_finished_and_diverged_trials_are_done_and_the_others_run(planned: Planner, tmp_path: Path) -> None:
    results = Results(str(tmp_path / "results"))
    states = ("finished", "diverged", "failed", "running")
    for each, state in zip(planned(GRID).trials, states, strict=True):
        results.write_trial(each.trial, [POINT], state, f"why {state}", {})
    plan = planned(GRID)
    assert [p.state for p in plan.trials] == list(states)
    assert [p.reason for p in plan.trials] == [f"why {state}" for state in states]
    assert {p.state for p in plan.to_run} == {"failed", "running"}
    assert any("1 trials diverged before and would again" in warning for warning in plan.warnings)


def test_a_larger_sweep_runs_only_what_it_adds(planned: Planner, tmp_path: Path) -> None:
    results = Results(str(tmp_path / "results"))
    for each in planned(GRID).trials:
        results.write_trial(each.trial, [POINT], "finished", None, {})
    assert planned(GRID).to_run == []
    assert planned(GRID).seconds == 0.0
    more = planned("axes: {d_model: [16, 32, 64], lr: [1e-3, 1e-2]}\nseeds: [0, 1]\n")
    assert [(p.cell.axes["d_model"], p.trial.config.seed) for p in more.trials if not p.will_run] == [(16, 0)] * 2 + [
        (32, 0)
    ] * 2
    assert len(more.to_run) == 8


def test_a_trial_of_two_arms_is_trained_once(planned: Planner) -> None:
    plan = planned("arms: {a: {}, b: {lr: 1e-2}, c: {lr: 2e-2}}\n")
    assert len(plan.trials) == 3
    assert len(plan.to_run) == 2
    assert [p.label for p in plan.trials] == ["a seed=0", "b seed=0", "c seed=0"]


def test_an_edited_text_is_another_trial(tmp_path: Path, planned: Planner, long_corpus: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in long_corpus.iterdir():
        (copy / f"renamed-{path.name}").write_text(path.read_text())
    overrides = (f"corpus={copy}",)
    before = planned().trials[0].trial
    assert planned(overrides=overrides).trials[0].trial.identity == before.identity, "names and places do not count"
    first = next(copy.iterdir())
    first.write_text(first.read_text() + " more")
    assert planned(overrides=overrides).trials[0].trial.identity != before.identity


# what is refused


@pytest.mark.parametrize(
    ("more", "options", "says"),
    [
        ("axes:\n  tokens_budget: [5120,\n    1G]\n", {}, "tiny.yaml, line 8: tokens_budget=1000000000: the budget of 1,000,000,"),
        ("", {"overrides": ("tokens_budget=5M",)}, "--set tokens_budget=5M: the budget of 4,999,936 tokens reads the "),
        ("", {"overrides": ("tokens_budget=127",)}, "--set tokens_budget=127: the budget allows 127 tokens, less than one step of train.batch_tokens = 256: raise"),
        ("arms:\n  a: {flops_budget: 1e6}\n", {}, "tiny.yaml, line 7: a: the budget allows"),
        ("axes:\n  context_length: [32, 32768]\n", {"overrides": ("batch_tokens=65536", "tokens_budget=131072")}, "tiny.yaml, line 7: context_length=32768: model.context_length = 32,768 is longer than any document"),
        ("", {"overrides": ("unique_tokens=1000", "context_length=1024", "batch_tokens=1024", "repeats=true")}, "--set context_length=1024: model.context_length = 1,024 is longer"),
        ("", {"overrides": ("unique_tokens=900M",)}, "--set unique_tokens=900M: data.unique_tokens = 900,000,000 is more than the "),
        ("axes: {lr: [1e-3, 0.001]}\n", {}, "tiny.yaml: a value written twice moves nothing: (lr=0.001 seed=0) and (lr=0.001 seed=0) are the same trial"),
        ("axes: {resources.cpu: [1, 2]}\n", {}, "tiny.yaml: cpu moves nothing: (cpu=1 seed=0) and (cpu=2 seed=0) are the same"),
        ("axes: {tokens_budget: [5120, 5121]}\n", {}, "tiny.yaml: tokens_budget moves nothing"),
        ("axes: {decay_fraction: [0.1, 0.2]}\n", {}, "tiny.yaml: decay_fraction moves nothing"),
        ("seeds: [1, 2, 1]\n", {}, "tiny.yaml: a value written twice moves nothing: (seed=1) and (seed=1)"),
    ],
)  # fmt: skip
def test_a_mistake_that_only_the_text_shows_is_told_with_its_place(
    refused: Callable[..., str], more: str, options: Any, says: str
) -> None:
    assert says in refused(more, **options)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("corpus=nowhere.txt",), "--set corpus=nowhere.txt: data.corpus 'nowhere.txt' is neither a named corpus nor"),
        (("val_bytes=50K",), "--set val_bytes=50K: data.val_bytes 50000 holds out "),
        (("val_bytes=100M",), "--set val_bytes=100M: holding out "),
    ],
)
def test_a_text_that_cannot_be_used_is_a_data_error_with_its_place(
    refused: Callable[..., str], overrides: Any, says: str
) -> None:
    assert refused(overrides=overrides, error=DataError).startswith(says)


def test_a_held_out_part_that_is_too_small_is_told_with_its_line(refused: Callable[..., str]) -> None:
    told = refused(replace=("val_bytes: 101K", "val_bytes: 50K"), error=DataError)
    assert told.startswith("tiny.yaml, line 3: data.val_bytes 50000 holds out ")


def test_several_epochs_run_when_they_are_allowed(planned: Planner) -> None:
    (trial,) = planned(overrides=("tokens_budget=5M", "repeats=true")).trials
    assert trial.trial.epochs > 2


def test_few_steps_are_warned_of(planned: Planner) -> None:
    (warning,) = planned("axes: {d_model: [16, 32]}\n").warnings
    assert "d_model=16 seed=0 takes only 20 optimizer steps" in warning
    assert planned(overrides=("tokens_budget=51200",)).warnings == ()


# what it tells


def test_slots_follow_the_most_demanding_trial(planned: Planner) -> None:
    assert planned(capacity=Capacity(8, 0)).at_once == 8
    assert planned("resources: {cpu: 3}\n", capacity=Capacity(8, 0)).at_once == 2
    assert planned("resources: {gpu: 0.25}\n", capacity=Capacity(8, 1)).at_once == 4
    assert planned("resources: {gpu: 1}\n", capacity=Capacity(8, 0)).at_once == 0


@pytest.mark.parametrize(
    ("resources", "lack"),
    [
        ("{gpu: 1}", "needs 1 GPU at once where there is none: .*--set resources.gpu="),
        ("{cpu: 9}", "needs 9 CPU cores"),
    ],
)
def test_a_plan_of_which_nothing_can_run_says_which_resource_is_missing(
    planned: Planner, resources: str, lack: str
) -> None:
    (warning,) = planned(
        f"resources: {resources}\n", overrides=("tokens_budget=51200",), capacity=Capacity(8, 0)
    ).warnings
    assert re.match(f"seed=0 {lack}", warning)
    later = planned(
        f"resources: {resources}\n", overrides=("tokens_budget=51200",), capacity=Capacity(8, 0, grows=True)
    )
    assert "wait for the autoscaler" in later.warnings[0]


def test_the_json_lists_each_trial_with_place_counts_and_costs(planned: Planner) -> None:
    plan = planned("axes: {d_model: [16, 32]}\nseeds: [4]\n")
    told = plan.as_json()
    assert told["sweep"] == "tiny"
    assert told["at_once"] == 2
    first, second = told["trials"]
    trial = plan.trials[0].trial
    assert first == {
        "trial": trial.identity, "arm": "base", "seed": 4, "d_model": 16,
        "n_non_embedding": trial.parameters.n_non_embedding, "n_embedding": trial.parameters.n_embedding,
        "n_lm_head": 257 * 16, "n_matmul": trial.parameters.n_matmul, "n_total": trial.parameters.n_total,
        "steps": 20, "tokens": 5120, "flops": trial.flops, "epochs": trial.epochs,
            "memory_bytes": trial.memory_bytes,
        "state": "new", "reason": None, "settled": {"resources.compile": False}, "seconds": None,
    }  # fmt: skip
    assert second["d_model"] == 32


def test_a_forecast_gives_every_trial_seconds_and_the_launch_their_makespan(planned: Planner) -> None:
    plan = planned("axes: {d_model: [16, 32]}\n", measure=True, capacity=Capacity(1, 0))
    seconds = [p.seconds for p in plan.trials]
    assert all(each > 0 for each in seconds)
    assert plan.seconds == pytest.approx(sum(seconds) + forecast.LAUNCH_SECONDS)
    assert [p.seconds for p in plan.to_run] == sorted(seconds, reverse=True)


def test_the_forecast_leaves_out_what_an_interrupted_trial_has_done_and_doubts_a_busy_machine(
    planned: Planner, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    said: list[str] = []
    whole = planned(measure=True, capacity=Capacity(1, 0), notify=said.append)
    assert not any("busy" in warning for warning in whole.warnings)
    assert all(
        re.fullmatch(r"measuring this machine's speed(: 1 of 1 shape)?", each) for each in said if "speed" in each
    )
    (trial,) = (each.trial for each in whole.trials)
    results.write_trial(trial, [{**POINT, "tokens": trial.tokens // 4}], "running", None, {})
    monkeypatch.setattr(planning.os, "getloadavg", lambda: (64.0, 0.0, 0.0))
    rest = planned(measure=True, capacity=Capacity(1, 0))
    assert rest.trials[0].seconds == pytest.approx(0.75 * whole.trials[0].seconds)
    assert any("this machine is busy (a load of 64.0 on" in warning for warning in rest.warnings)


def test_each_configuration_of_a_plan_is_resolved_once(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrialConfig] = []

    def counted(texts: Any, own: Any, teachers: Any, variant: Variant) -> Trial:
        asked.append(variant.config)
        return resolve_against(texts, own, teachers, variant)

    monkeypatch.setattr(planning, "resolve_against", counted)
    planned("search: {fields: {train.weight_decay: {low: 0.01, high: 0.2}}, trials: 4}\nseeds: [0, 1]\n")
    assert len(asked) == len(set(asked)) > 2


def test_a_plan_says_what_is_trained_on_and_held_out_and_warns_of_a_text_that_is_one_document(
    tmp_path: Path,
) -> None:
    def of(corpus: str) -> Plan:
        text = f"name: told\nbase:\n  data: {{corpus: {corpus}, tokenizer: {{kind: char}}, val_bytes: 101K}}\n"
        model = "  model: {d_model: 8, n_layers: 1, n_heads: 1, context_length: 32}\n"
        (tmp_path / "told.yaml").write_text(
            text + model + "  train: {tokens_budget: 60K, batch_tokens: 256, lr: 1e-2}\n"
        )
        return make_plan(load_sweep(tmp_path / "told.yaml"), Results(str(tmp_path)), Capacity(2, 0), measure=False)

    words = "one two three four five six seven eight nine ten " * 6000
    (tmp_path / "whole.txt").write_text(words)
    whole = of("whole.txt")
    (note,) = (note for note in whole.notes if note.startswith("text "))
    assert "one document with 193K tokens to train on; held out: the end of the text with 101K" in note
    (warning,) = (each for each in whole.warnings if "is one document, so what is held out is its end" in each)
    assert r'as data.separator ("\n\n": paragraphs), give a folder, .jsonl or .parquet, or give data.val' in warning
    parts = [f"{number} {words[: 9000 + number]}" for number in range(40)]
    (tmp_path / "parts.txt").write_text("<|endoftext|>".join(parts))
    several = of("parts.txt")
    assert not any("is one document" in warning for warning in several.warnings)
    (note,) = (note for note in several.notes if note.startswith("text "))
    assert "28 documents with" in note
    assert "held out: 12 documents with" in note


def test_a_validation_text_of_its_own_is_named_by_the_plan_with_what_is_also_trained_on(
    planned: Planner, tmp_path: Path, long_corpus: Path
) -> None:
    texts = [(long_corpus / "0.txt").read_text(), (long_corpus / "1.txt").read_text(), "something else. " * 8000]
    (tmp_path / "val.txt").write_text("<|endoftext|>".join(texts))
    made = planned(replace=("val_bytes: 101K", "val: val.txt"))
    assert any("validation: " in note and "val.txt, 3 documents with" in note for note in made.notes)
    assert any("2 of 3 documents of" in warning and "also in the training text" in warning for warning in made.warnings)
    assert made.trials[0].trial.identity != planned().trials[0].trial.identity
