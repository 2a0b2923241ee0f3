"""The results folder: one schema, readable by anything at every moment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.trials import known_trial
from tinyscale.errors import ResultsError
from tinyscale.results.schema import COLUMNS, SCHEMA, SCHEMA_VERSION, point_columns, trial_columns
from tinyscale.results.store import FIRST_SPLIT_RULE, Results, over_seeds, read_results, sweep_points
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.settings import FIELDS
from tinyscale.spec.trial import Trial, resolve
from tinyscale.storage import Folder

PROVENANCE = {"commit": "abc", "packages": {"torch": "2"}}


def point(trial: Trial, step: int = 20, loss: float = 2.0) -> dict[str, Any]:
    measured = {
        "step": step, "tokens": step * 256, "decayed": step == trial.steps, "lr_now": 1e-3,
        "train_loss": loss + 0.1, "val_loss": loss, "val_loss_se": 0.01,
        "wall_seconds": 1.5, "tokens_per_second": 1e4, "peak_memory_bytes": 10**8,
    }  # fmt: skip
    return point_columns(trial, measured, val_tokens=1000, val_bytes=4000)


def readers(results: Results) -> Iterator[pd.DataFrame]:
    """The folder as pandas reads it, as DuckDB does, and as we do."""
    yield pd.read_parquet(results.trials.path)
    files = f"{results.trials.path}/*.parquet"
    yield duckdb.sql(f"select * from read_parquet('{files}', union_by_name=true)").df()
    frame, set_aside = results.read()
    assert set_aside == []
    yield frame


def losses(frame: pd.DataFrame) -> list[tuple[str, str, float | None]]:
    """State and loss of every row, in an order of their own."""
    rows = zip(frame["trial"], frame["state"], frame["val_loss"], strict=True)
    return sorted(((t, s, None if pd.isna(loss) else float(loss)) for t, s, loss in rows), key=str)


def assert_all_read(results: Results, expected: list[tuple[str, str, float | None]]) -> None:
    for frame in readers(results):
        assert losses(frame) == sorted(expected, key=str)


def write_other_version(results: Results, trial: Trial, change: Any) -> None:
    """The trial's file as another version of the schema would have written it."""
    path = Path(results.trials.path) / f"{trial.identity}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


# readable at every moment


def test_the_folder_is_readable_at_every_moment_of_a_sweep(results: Results) -> None:
    one, two, three = (known_trial(seed=seed) for seed in range(3))
    results.write_trial(one, [], "failed", "out of memory", PROVENANCE)
    expected: list[tuple[str, str, float | None]] = [(one.identity, "failed", None)]
    assert_all_read(results, expected)  # a failed row first: it has a null in every measured column
    results.write_trial(two, [point(two, 10, 3.0)], "running", None, PROVENANCE)
    assert_all_read(results, [*expected, (two.identity, "running", 3.0)])
    results.write_trial(two, [point(two, 10, 3.0), point(two)], "finished", None, PROVENANCE)
    expected += [(two.identity, "finished", 3.0), (two.identity, "finished", 2.0)]
    assert_all_read(results, expected)
    results.write_trial(three, [point(three, 5, 9.0)], "diverged", "loss not finite at step 6", PROVENANCE)
    expected += [(three.identity, "diverged", 9.0), (three.identity, "diverged", None)]
    assert_all_read(results, expected)


def test_two_versions_of_the_schema_are_read_together(results: Results) -> None:
    old, now, new = (known_trial(seed=seed) for seed in range(3))
    for trial in (old, now, new):
        results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    write_other_version(results, old, lambda table: table.drop_columns(["workers", "perplexity"]))
    write_other_version(results, new, lambda table: table.append_column("later", pa.array(["x"])))
    expected = [(trial.identity, "finished", 2.0) for trial in (old, now, new)]
    assert_all_read(results, expected)
    frame, _ = results.read()
    assert list(frame.columns) == SCHEMA.names
    assert frame.set_index("trial")["workers"].isna().to_dict() == {
        old.identity: True,
        now.identity: False,
        new.identity: False,
    }


def test_every_file_has_the_one_schema_whatever_it_holds(results: Results) -> None:
    for seed, state in enumerate(("running", "failed", "diverged", "finished")):
        trial = known_trial(seed=seed)
        results.write_trial(trial, [point(trial)] if state == "finished" else [], state, None, PROVENANCE)
        assert pq.read_schema(f"{results.trials.path}/{trial.identity}.parquet").equals(SCHEMA, check_metadata=False)


def test_an_empty_folder_reads_as_an_empty_frame_with_all_columns(results: Results) -> None:
    results.folder.make()
    frame = read_results(results.location)
    assert frame.empty
    assert list(frame.columns) == [name for name, _, _ in COLUMNS]
    assert results.states() == {}


def test_reading_writes_nothing(results: Results) -> None:
    results.read()
    results.states()
    results.read_sweeps()
    assert not Path(results.folder.path).exists()


def test_no_temporary_file_is_ever_among_the_trials(results: Results) -> None:
    trial = known_trial()
    for step in range(3):
        results.write_trial(trial, [point(trial)] * step, "running", None, PROVENANCE)
        assert [path.name for path in Path(results.trials.path).iterdir()] == [f"{trial.identity}.parquet"]
    assert [p for p in Path(results.folder.path).rglob("*") if p.is_file()] == [
        Path(results.trials.path) / f"{trial.identity}.parquet"
    ]


# damage


FOREIGN = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"not parquet at all",
    "without its end": lambda content: content[:-1],
}


@pytest.mark.parametrize("damage", FOREIGN)
def test_a_damaged_file_is_named_and_set_aside_and_the_rest_is_read(results: Results, damage: str) -> None:
    good, bad = known_trial(seed=0), known_trial(seed=1)
    for trial in (good, bad):
        results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    path = Path(results.trials.path) / f"{bad.identity}.parquet"
    path.write_bytes(FOREIGN[damage](path.read_bytes()))
    frame, (line,) = results.read()
    assert list(frame["trial"]) == [good.identity]
    assert f"{bad.identity}.parquet: set aside" in line
    assert results.states() == {good.identity: ("finished", None)}
    assert results.state(bad.identity) is None
    results.mark_failed(bad, "its file was damaged", PROVENANCE)
    assert results.states()[bad.identity] == ("failed", "its file was damaged")


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [1]}),
        pa.table({"trial": [[1]], "state": [[2]], "schema_version": [[3]]}),
        pa.table({"trial": [{"a": 1}], "state": ["x"], "schema_version": ["y"]}),
        pa.table({"trial": ["a"], "state": ["finished"], "schema_version": [1], "val_loss": ["two"]}),
        pa.table({"trial": [b"\xff"], "state": ["finished"], "schema_version": [1]}),
    ],
    ids=["other columns", "lists", "structs", "a word for a loss", "no text"],
)
def test_a_foreign_parquet_file_is_named_and_set_aside(results: Results, table: pa.Table) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    pq.write_table(table, Path(results.trials.path) / "foreign.parquet")
    frame, (line,) = results.read()
    assert len(frame) == 1
    assert "foreign.parquet: set aside" in line


def test_a_changed_byte_never_stops_the_rest_from_being_read(results: Results) -> None:
    good, bad = known_trial(seed=0), known_trial(seed=1)
    for trial in (good, bad):
        results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    path = Path(results.trials.path) / f"{bad.identity}.parquet"
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        frame, set_aside = results.read()
        assert good.identity in set(frame["trial"])
        assert len(frame) + len(set_aside) == 2


def test_no_changed_bit_of_a_trials_file_gives_other_numbers(results: Results) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial, 10, 3.0), point(trial)], "finished", None, PROVENANCE)
    path = Path(results.trials.path) / f"{trial.identity}.parquet"
    content, (frame, _), (rows, metadata) = path.read_bytes(), results.read(), results.read_trial(trial.identity)
    for place in range(0, len(content), 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        found, set_aside = results.read()
        assert set_aside or found.equals(frame), place
        try:
            assert results.read_trial(trial.identity) == (rows, metadata), place
        except ResultsError as error:
            assert path.name in str(error)
        assert results.state(trial.identity) in ("finished", None)


def test_a_trials_file_from_before_there_were_digests_is_read_as_before(results: Results) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    frame, _ = results.read()
    write_other_version(results, trial, lambda table: table)
    assert b"sha-256" not in results.trials.read(f"{trial.identity}.parquet")
    assert results.read()[0].equals(frame)
    assert results.load_trial(trial.identity) == trial


@pytest.mark.parametrize("identity", ["../../victim", "..", "", "a/b", "/etc", None])
def test_a_trial_whose_name_leads_out_of_the_folder_is_set_aside_and_nothing_there_is_deleted(
    results: Results, identity: str | None
) -> None:
    trial, victim = known_trial(), Path(results.folder.path).parent / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("precious")
    results.write_trial(trial, [point(trial)], "failed", None, PROVENANCE)

    def rename(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("trial"), "trial", pa.array([identity] * len(table), "string"))

    write_other_version(results, trial, rename)
    frame, (line,) = results.read()
    assert frame.empty
    assert "which is not an identity" in line
    assert results.states() == {}
    if identity is not None:
        with pytest.raises(ResultsError, match="no name of a file"):
            results.forget(identity)
    assert [path.name for path in victim.iterdir()] == ["thesis.tex"]


def test_what_lies_behind_a_link_in_the_place_of_checkpoints_is_not_deleted(results: Results, tmp_path: Path) -> None:
    trial, victim = known_trial(), tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("precious")
    results.write_trial(trial, [], "failed", None, PROVENANCE)
    folder = Path(results.checkpoints(trial.identity).path)
    folder.parent.mkdir()
    folder.symlink_to(victim)
    results.forget(trial.identity)
    assert results.states() == {}
    assert [path.name for path in victim.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("state", ["won", "new", None])
def test_rows_in_a_state_that_no_rows_have_are_set_aside(results: Results, state: str | None) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)

    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("state"), "state", pa.array([state] * len(table), "string"))

    write_other_version(results, trial, change)
    assert results.states_and_unreadable()[0] == {}
    assert results.state(trial.identity) is None


# what is in a row


def test_a_finished_trials_rows_hold_what_was_measured_and_what_follows(results: Results) -> None:
    trial = known_trial(tie_embeddings=True, betas=[0.8, 0.9], resources={"cpu": 2, "workers": 2})
    results.write_trial(trial, [point(trial, 10, 3.0), point(trial, 20, 2.5)], "finished", None, PROVENANCE)
    frame = read_results(results.location)
    assert list(frame["step"]) == [10, 20]
    assert list(frame["decayed"]) == [False, True]
    row = frame.iloc[1]
    assert row["perplexity"] == pytest.approx(math.exp(2.5))
    assert row["bits_per_byte"] == pytest.approx(2.5 / math.log(2) * 1000 / 4000)
    assert (row["val_tokens"], row["val_bytes"]) == (1000, 4000), "what was held out, not what was asked for"
    assert row["epochs"] == pytest.approx(20 * 256 / 1e6)
    for name, per_token in trial.flops_per_token.items():
        assert row[name] == pytest.approx(per_token * 20 * 256)
    counts = trial.parameters
    assert (row["n_non_embedding"], row["n_total"], row["n_lm_head"]) == (counts.n_non_embedding, counts.n_total, 0)
    assert (row["betas"], row["tokenizer"], row["vocab_size"], row["unique_tokens"]) == (
        "[0.8, 0.9]",
        "byte",
        257,
        10**6,
    )
    assert (row["cpu"], row["workers"], row["gpu"]) == (2, 2, 0)
    assert (row["corpus_hash"], row["tokenizer_hash"], row["run"]) == ("c0", "70", trial.identity)
    assert row["schema_version"] == SCHEMA_VERSION


def test_a_loss_too_large_for_a_perplexity_is_still_a_row(results: Results) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial, loss=5000.0)], "finished", None, PROVENANCE)
    assert list(read_results(results.location)["perplexity"]) == [math.inf]


def test_a_failed_trial_is_a_row_with_its_reason_and_no_loss(results: Results) -> None:
    trial = known_trial()
    results.write_trial(trial, [], "failed", "no memory", PROVENANCE)
    (row,) = read_results(results.location).to_dict("records")
    assert (row["state"], row["reason"]) == ("failed", "no memory")
    assert math.isnan(row["val_loss"])
    assert (row["d_model"], row["n_non_embedding"]) == (16, trial.parameters.n_non_embedding)
    assert results.states() == {trial.identity: ("failed", "no memory")}


def test_marking_a_trial_failed_keeps_the_points_it_wrote(results: Results) -> None:
    trial = known_trial()
    results.mark_failed(trial, "the process died", PROVENANCE)
    assert len(read_results(results.location)) == 1
    results.write_trial(trial, [point(trial, 5, 4.0), point(trial, 10, 3.0)], "running", None, PROVENANCE)
    for _ in range(2):
        results.mark_failed(trial, "the process died", PROVENANCE)
        frame = read_results(results.location)
        assert [None if math.isnan(loss) else loss for loss in frame["val_loss"]] == [4.0, 3.0, None]
        assert set(frame["state"]) == {"failed"}
        assert set(frame["reason"]) == {"the process died"}


@pytest.mark.parametrize("provenance", [{"host": {"a": 1}}, {"packages": []}, {"launched": "x"}, {"launched": "2026"}])
def test_a_file_with_a_provenance_of_another_shape_is_set_aside(results: Results, provenance: dict[str, Any]) -> None:
    results.write_trial(known_trial(), [point(known_trial())], "finished", None, provenance)
    assert results.provenances() == {}
    assert results.state(known_trial().identity) is None


def test_marking_a_trial_failed_keeps_the_machine_that_its_rows_of_the_same_launch_name(results: Results) -> None:
    launched = {**PROVENANCE, "launched": "2026-01-02T03:04:05+00:00"}
    trial = known_trial()
    before = {"host": "node", "launched": "2026-01-01T03:04:05+00:00"}
    for machine, kept in (({"host": "node"}, {"host": "node"}), (before, {})):
        results.write_trial(trial, [point(trial)], "running", None, {**launched, **machine})
        results.mark_failed(trial, "the process died", launched)
        assert results.read_trial(trial.identity)[1]["provenance"] == {**launched, **kept}


def test_marking_a_trial_failed_keeps_the_points_of_a_later_schema(results: Results) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial)], "running", None, PROVENANCE)
    write_other_version(results, trial, lambda table: table.append_column("later", pa.array(["x"])))
    results.mark_failed(trial, "died", PROVENANCE)
    assert list(read_results(results.location)["val_loss"].dropna()) == [2.0]


def test_the_file_says_its_configuration_and_where_it_comes_from(results: Results) -> None:
    trial = known_trial(lr=3e-3)
    results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    rows, metadata = results.read_trial(trial.identity)
    assert metadata["provenance"] == PROVENANCE
    assert metadata["config"]["train"]["lr"] == 3e-3
    assert type(trial.config).model_validate_json(json.dumps(metadata["config"])) == trial.config
    assert rows[0]["trial"] == trial.identity
    assert results.load_trial(trial.identity) == trial


def test_a_trial_whose_file_says_nothing_of_its_text_is_read_from_its_rows(results: Results) -> None:
    trial = known_trial()
    trial = resolve(trial.config, replace(trial.facts, split_rule=FIRST_SPLIT_RULE))
    results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    write_other_version(results, trial, without_facts)
    assert results.load_trial(trial.identity) == trial


def without_facts(table: pa.Table) -> pa.Table:
    metadata = dict(table.schema.metadata)
    del metadata[b"tinyscale.facts"]
    return table.replace_schema_metadata(metadata)


# Fields that are no column of their own, and why.
EXCEPTIONS = {
    "data.tokenizer.kind": "the column tokenizer",
    "data.tokenizer.vocab_size": "the column is the vocabulary that came of it",
    "data.val_bytes": "the column holds what was held out, not what was asked for",
    "data.max_bytes": "what was read is corpus_hash",
    "data.separator": "what was read is corpus_hash",
    "data.parts": "what was read is corpus_hash",
    "data.shares": "in words",
    "model.head_dim": "d_model / n_heads",
    "model.extra": "as JSON; null without any",
    "train.tokens_per_param": "resolved to tokens_budget",
    "train.flops_budget": "resolved to tokens_budget",
    "train.epochs_budget": "resolved to tokens_budget",
}


def test_every_field_of_a_trial_is_a_column_of_its_value() -> None:
    changes = {
        "lr": 3e-3,
        "positions": "rotary",
        "schedule": "wsd",
        "grad_clip": 2.0,
        "eval_points": 4,
        "seed": 3,
        "bias": True,
        "n_kv_heads": 1,
        "weight_bits": 4,
        "teacher_weight": 0.5,
        "temperature": 2.0,
    }
    trial = known_trial(known_trial(seed=7), **changes)
    row = trial_columns(trial)
    for field in FIELDS:
        name = field.rpartition(".")[2]
        if field in EXCEPTIONS or field.startswith(
            ("data.zipf.", "data.repeats.")
        ):  # a source's settings are in corpus_hash
            continue
        value: Any = trial.config
        for part in field.split("."):
            value = getattr(value, part)
        expected = (
            trial.unique_tokens
            if name == "unique_tokens"
            else json.dumps(value)
            if name in ("betas", "branches")
            else value
        )
        assert row[name] == expected, field


def test_the_heads_of_keys_are_a_number_also_where_the_file_leaves_them_out() -> None:
    assert trial_columns(known_trial(n_heads=4))["n_kv_heads"] == 4


def test_columns_are_documented_unique_and_nullable() -> None:
    names = [name for name, _, _ in COLUMNS]
    assert len(names) == len(set(names))
    assert all(doc for _, _, doc in COLUMNS)
    assert all(field.nullable for field in SCHEMA)


# sweeps


def record(name: str, *trials: Trial, arm: str = "base") -> SweepRecord:
    entries = tuple(SweepEntry(t.identity, Cell(arm, {"d_model": 16}, t.config.seed)) for t in trials)
    return SweepRecord(name, "a title", "name: x\n", ("d_model",), entries, PROVENANCE)


def test_a_sweeps_record_is_read_as_it_was_written(results: Results) -> None:
    first, second = record("b", known_trial()), record("a", known_trial(), known_trial(seed=1))
    results.write_sweep(first)
    results.write_sweep(second)
    assert results.read_sweeps() == [second, first]
    assert second.trials == [known_trial().identity, known_trial(seed=1).identity]


@pytest.mark.parametrize(
    ("name", "trial"), [("../../pwn/x", "a1"), ("other", "a1"), ("bad", "../../victim"), ("bad", ""), (["bad"], "a1")]
)
def test_a_record_whose_names_lead_elsewhere_is_none(results: Results, name: Any, trial: str) -> None:
    written = record("bad", known_trial()).as_json()
    written["name"], written["groups"][0]["trial"] = name, trial
    results.sweeps.write("bad.json", json.dumps(written).encode())
    with pytest.raises(ResultsError, match=r"bad\.json: not a sweep's record"):
        results.read_sweeps()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"name": "x", "axes": [], "groups": [], "surprise": 1}', b"\xff"]
)
def test_a_record_that_is_none_is_named(results: Results, content: bytes) -> None:
    results.sweeps.write("bad.json", content)
    with pytest.raises(ResultsError, match=r"bad\.json: not a sweep's record"):
        results.read_sweeps()


def test_a_trial_belongs_to_each_of_its_sweeps_with_its_arm_there(results: Results) -> None:
    one, two = known_trial(), known_trial(seed=1)
    for trial in (one, two):
        results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    frame = read_results(results.location)
    both, single = sweep_points(frame, record("both", one, two)), sweep_points(frame, record("single", two, arm="lion"))
    assert list(both["trial"]) == [one.identity, two.identity]
    assert single[["trial", "sweep", "arm"]].to_numpy().tolist() == [[two.identity, "single", "lion"]]
    assert sweep_points(frame, record("none")).empty


def test_seeds_are_summed_up_by_mean_and_standard_deviation(results: Results) -> None:
    for seed, loss in enumerate((2.0, 3.0, 7.0)):
        trial = known_trial(seed=seed)
        results.write_trial(trial, [point(trial, loss=loss)], "finished", None, PROVENANCE)
    other = known_trial(d_model=32)
    results.write_trial(other, [point(other, loss=1.5)], "finished", None, PROVENANCE)
    rows = over_seeds(read_results(results.location), ["d_model"]).set_index("d_model")
    assert rows["seeds"].to_dict() == {16: 3, 32: 1}
    assert rows.loc[16, "val_loss_mean"] == 4.0
    assert rows.loc[16, "val_loss_std"] == pytest.approx(math.sqrt(7))
    assert math.isnan(rows.loc[32, "val_loss_std"])


def test_a_trial_that_is_forgotten_while_all_are_read_is_no_damaged_file(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = known_trial()
    results.write_trial(trial, [point(trial)], "finished", None, PROVENANCE)
    listed = Folder.stamps
    monkeypatch.setattr(Folder, "stamps", lambda folder, end="": {**listed(folder, end), "gone.parquet": "gone"})
    frame, set_aside = results.read()
    assert (list(frame["trial"]), set_aside) == ([trial.identity], [])
